package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/replica"
)

const (
	// watchRoom is how many events are kept for a client that reads slowly, before
	// some are lost.
	watchRoom = 4096
	// watchBeat is how often a line that says nothing tells whether the client is
	// there still.
	watchBeat = 5 * time.Second
	// watchPatience is how long a client may take nothing at all.
	watchPatience = time.Minute
	// maxWatches bounds those who watch at a time: each costs every write a little.
	maxWatches = 16
)

// watchEvent is a replica's event as it is sent.
type watchEvent struct {
	Time    int64        `json:"time_ms"` // unix, of this controller
	Verb    replica.Verb `json:"verb"`
	Key     string       `json:"key,omitempty"`
	KeyB64  []byte       `json:"key_base64,omitempty"` // in place of a Key that is no UTF-8
	Version uint64       `json:"version,string"`
	By      string       `json:"by,omitempty"` // the controller that decided it
	Size    int          `json:"size"`
	Expires int64        `json:"expires_ms,omitempty"` // unix
	TTL     int64        `json:"ttl_ms,omitempty"`
}

// serveWatch answers GET /watch?prefix=... with a stream of events, until the client
// hangs up or the controller stops.
func (n *Node) serveWatch(w http.ResponseWriter, r *http.Request) {
	prefix := r.URL.Query().Get("prefix")
	if len(prefix) > maxKey {
		http.Error(w, fmt.Sprintf("no key is longer than %d bytes", maxKey), http.StatusBadRequest)
		return
	}
	if n.watches.Add(1) > maxWatches {
		n.watches.Add(-1)
		http.Error(w, fmt.Sprintf("%d watch this controller already; ask another one", maxWatches), http.StatusServiceUnavailable)
		return
	}
	defer n.watches.Add(-1)
	rs := make([]*replica.Replica, len(n.shards))
	for i, sh := range n.shards {
		rs[i] = sh.replica
	}
	watch := replica.NewWatch(prefix, watchRoom, rs...)
	defer watch.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := &eventWriter{w: w, control: http.NewResponseController(w)}
	// It begins with a line that says nothing, so that the client knows when.
	err := out.write(": " + n.cfg.Name + "\n\n")
	if err == nil {
		err = n.sendEvents(r.Context(), out, watch)
	}
	n.log.Debug("somebody watched", zap.String("prefix", prefix), zap.Error(err))
}

// sendEvents writes what watch tells until ctx ends, or this node, or nobody reads.
func (n *Node) sendEvents(ctx context.Context, out *eventWriter, watch *replica.Watch) error {
	beat := time.NewTicker(watchBeat)
	defer beat.Stop()
	for {
		if len(watch.Events()) == 0 {
			if err := out.control.Flush(); err != nil {
				return err
			}
		}
		var err error
		select {
		case ev := <-watch.Events():
			if err = out.lost(ev.Lost); err == nil {
				err = out.event("", n.describe(&ev))
			}
		case <-beat.C:
			if err = out.lost(watch.Lost()); err == nil {
				err = out.write(":\n\n")
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-n.ctx.Done():
			return context.Cause(n.ctx)
		}
		if err != nil {
			return err
		}
	}
}

// describe puts an event into words.
func (n *Node) describe(ev *replica.Event) *watchEvent {
	out := &watchEvent{
		Time: ev.Time, Verb: ev.Verb, Version: uint64(ev.Version), Size: ev.Size, Expires: ev.Expires,
	}
	if utf8.ValidString(ev.Key) {
		out.Key = ev.Key
	} else {
		out.KeyB64 = []byte(ev.Key)
	}
	if ev.Expires != 0 {
		out.TTL = ev.Expires - n.now()
	}
	if ev.Verb != replica.VerbExpire && ev.Verb != replica.VerbEvict { // which each does for itself
		out.By = n.decidedBy(ev.Version)
	}
	return out
}

// decidedBy is the name of the controller that decided a change; "" if it is not known.
func (n *Node) decidedBy(v attune.Version) string {
	if g, ok := n.group(); ok {
		return g.Origin(v)
	}
	if g, ok := n.gossiping(); ok {
		return g.Origin(v)
	}
	return n.cfg.Name
}

// eventWriter writes an event stream as https://html.spec.whatwg.org has it, and
// gives up a client that does not read.
type eventWriter struct {
	w       io.Writer
	control *http.ResponseController
}

func (o *eventWriter) write(text string) error {
	if err := o.control.SetWriteDeadline(time.Now().Add(watchPatience)); err != nil {
		return err
	}
	_, err := io.WriteString(o.w, text)
	return err
}

// event writes one of a kind; "" is the usual.
func (o *eventWriter) event(kind string, data any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return err
	}
	if kind != "" {
		kind = "event: " + kind + "\n"
	}
	return o.write(kind + "data: " + string(raw) + "\n\n")
}

// lost says how many events the client was too slow for.
func (o *eventWriter) lost(count uint64) error {
	if count == 0 {
		return nil
	}
	return o.event("lost", map[string]uint64{"lost": count})
}
