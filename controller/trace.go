package controller

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/attunekv/attune"
)

// traced is what became of the commands of POST /trace.
type traced struct {
	Controller string       `json:"controller"`
	Level      string       `json:"level"`
	Reply      string       `json:"reply"`
	Took       int64        `json:"took_us"` // from received to answered
	Steps      []tracedStep `json:"steps"`
	Lacks      string       `json:"not_measured,omitempty"`
	TraceID    string       `json:"trace_id,omitempty"` // at the collector, if there is one
}

// tracedStep is something that happened, so long after the commands were received.
type tracedStep struct {
	At   int64  `json:"at_us"`
	Text string `json:"step"`
}

// serveTrace carries out the memcache commands in the body of a POST as those of a
// connection are, and answers with when they came to each step.
func (n *Node) serveTrace(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "POST the command, as it goes to a memcache server", http.StatusMethodNotAllowed)
		return
	}
	if err := n.Ready(); err != nil && n.draining.Load() {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	command, err := io.ReadAll(http.MaxBytesReader(w, r.Body, inSize))
	if err != nil {
		http.Error(w, "the command is too long to be traced", http.StatusRequestEntityTooLarge)
		return
	}
	if !n.tracing.TryLock() {
		http.Error(w, "another command is being traced; try again", http.StatusConflict)
		return
	}
	defer n.tracing.Unlock()
	result, err := n.runTraced(command)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answerJSON(w, result)
}

// runTraced has a session of its own carry out command.
func (n *Node) runTraced(command []byte) (*traced, error) {
	s := newSession(n, &n.stripes[0])
	answered := make(chan struct{}, 1)
	s.call.Done = func() { answered <- struct{}{} }
	defer s.abandon()
	s.received(copy(s.space(), command))
	c := new(captured)
	t := n.newTrace("trace", n.keep())
	s.call.Trace, s.given = t, true
	defer t.End("")
	if !n.pump(c, s, answered) && c.Len() == 0 {
		return nil, errors.New("the command ends the connection, and has no answer")
	}
	t.Note("answered")
	if !s.idle() {
		return nil, errors.New("the command is not whole: it ends in \\r\\n, and so does its value, of as many bytes as it says")
	}
	if forwarded := func(step attune.Step) bool { return strings.HasPrefix(step.Text, "sent to ") }; slices.ContainsFunc(t.Steps(), forwarded) {
		seen := attune.Session{Seen: s.call.Session.Seen, Anchored: true}
		for _, sh := range n.shards {
			if err := n.barrier(n.ctx, sh, seen); err != nil {
				return nil, err
			}
		}
		t.Note("a read here sees it")
	}
	out := &traced{Controller: n.cfg.Name, Level: n.cfg.Level.String(), Reply: c.String()}
	for _, step := range t.Steps() {
		out.Steps = append(out.Steps, tracedStep{step.At.Microseconds(), step.Text})
		if step.Text == "answered" {
			out.Took = step.At.Microseconds()
		}
	}
	if t.Kept() {
		out.TraceID = hex.EncodeToString(t.ID.Trace[:])
	}
	out.Lacks = n.notMeasured()
	return out, nil
}

// notMeasured is what a trace at this controller cannot show.
func (n *Node) notMeasured() string {
	if g, ok := n.group(); ok {
		if st := g.Status(); st.Role != "leader" && st.Leader != "" {
			return "what " + st.Leader + ", which leads, does with a write: trace it there"
		}
	} else if _, ok := n.gossiping(); ok {
		return "when the others have a change that nobody waits for (write-acks), and what the home of a key does"
	}
	return ""
}

// captured is the connection of a traced command: it keeps the reply.
type captured struct {
	net.Conn // nil: a session on a goroutine of its own does no more than what follows
	bytes.Buffer
}

func (c *captured) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *captured) Write(b []byte) (int, error)      { return c.Buffer.Write(b) }
func (c *captured) SetWriteDeadline(time.Time) error { return nil }
