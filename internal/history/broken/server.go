package broken

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attunekv/attune/internal/history"
)

// Server is a store on loopback ports, a port for each replica. It speaks as much of
// the text and the meta dialect as package history does.
type Server struct {
	Targets []history.Target

	defect  Defect
	wg      sync.WaitGroup
	closing chan struct{} // closed by Close

	mu       sync.Mutex // guards what follows
	rand     *rand.Rand
	log      *Log    // this,
	gossip   *Gossip // or that
	sessions int
	conns    map[net.Conn]bool
	due      []expiry  // in the order of time
	lived    time.Time // until when gossip has gone on, a step per millisecond
	kept     []kept
}

// expiry is when a key is to go.
type expiry struct {
	key string
	at  time.Time
}

// kept is an old write that an Undead store has somewhere.
type kept struct {
	key, value string
	version    uint64
}

// Serve starts a store with a defect; Close it. Seed is that of its dice.
func Serve(d Defect, seed uint64) (*Server, error) {
	s := &Server{defect: d, lived: time.Now(), closing: make(chan struct{}), rand: rand.New(rand.NewPCG(seed, 2)), conns: make(map[net.Conn]bool)}
	if history.Leaderless(d.Level) {
		s.gossip = NewGossip(d.Gossip, s.rand)
	} else {
		s.log = NewLog(d.Log, s.rand)
	}
	for i := range replicas {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.Close()
			return nil, err
		}
		s.Targets = append(s.Targets, history.Target{Name: fmt.Sprint("n", i), Addr: l.Addr().String()})
		s.wg.Go(func() {
			<-s.closing
			l.Close()
		})
		s.wg.Go(func() { s.accept(l, i) })
	}
	s.wg.Go(s.live)
	return s, nil
}

// Close ends all connections.
func (s *Server) Close() {
	close(s.closing)
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Server) accept(l net.Listener, node int) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.sessions++
		session := s.sessions
		s.conns[c] = true
		s.mu.Unlock()
		select {
		case <-s.closing: // it may have come too late to be closed with the others
			c.Close()
		default:
		}
		s.wg.Go(func() {
			s.serve(c, node, session)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// live lets time go on.
func (s *Server) live() {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-s.closing:
			return
		case now := <-t.C:
			s.mu.Lock()
			s.tickLocked(now)
			s.mu.Unlock()
		}
	}
}

func (s *Server) tickLocked(now time.Time) {
	for len(s.due) > 0 && !s.due[0].at.After(now) {
		key := s.due[0].key
		s.due = s.due[1:]
		if s.log != nil {
			s.log.Do(-1, history.Op{Kind: history.Delete, Key: key})
		} else {
			s.gossip.Expire(key)
		}
	}
	if s.gossip == nil {
		return
	}
	for ; s.lived.Before(now); s.lived = s.lived.Add(time.Millisecond) { // a busy machine skips ticks
		s.gossip.step()
	}
	if s.defect.Undead && len(s.kept) > 0 && s.rand.IntN(20) == 0 {
		k := s.kept[s.rand.IntN(len(s.kept))]
		s.gossip.Again(k.key, k.value, k.version)
	}
}

// serve executes the commands of a connection until it ends, or says what is none.
func (s *Server) serve(c net.Conn, node, session int) {
	defer c.Close()
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		fields := strings.Fields(line)
		if len(fields) > 0 && fields[0] == "stats" {
			fmt.Fprintf(w, "STAT name %s\r\nSTAT level %s\r\nEND\r\n", s.Targets[node].Name, s.defect.Level)
		} else {
			op, err := parse(r, fields)
			if err != nil {
				fmt.Fprintf(w, "CLIENT_ERROR %v\r\n", err)
				_ = w.Flush() // it hangs up anyway
				return
			}
			answer(w, fields, op, s.do(node, session, op))
		}
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
	}
}

// do executes a command, with what is wrong with this store besides.
func (s *Server) do(node, session int, op history.Op) history.Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.defect.Rot && len(op.Value) > 1000 && s.rand.IntN(20) == 0 {
		rotten := []byte(op.Value)
		rotten[len(rotten)/2] ^= 1
		op.Value = string(rotten)
	}
	var out history.Outcome
	if s.log != nil {
		out = s.log.Do(session, op)
	} else {
		out = s.gossip.Do(node, op)
	}
	if out.Status == history.Stored && op.TTL > 0 && !s.defect.Immortal {
		life := time.Duration(op.TTL) * time.Second
		if s.defect.Hasty {
			life /= 2
		}
		s.due = append(s.due, expiry{op.Key, time.Now().Add(life)})
	}
	if s.defect.Undead && op.Kind == history.Set && len(s.kept) < 1000 {
		s.kept = append(s.kept, kept{op.Key, op.Value, out.Version})
	}
	return out
}

var (
	verbs = map[string]history.Kind{
		"get": history.Get, "gets": history.Get, "mg": history.Get, "set": history.Set, "add": history.Add, "replace": history.Replace,
		"append": history.Append, "prepend": history.Prepend, "cas": history.CAS, "ms": history.Set, "delete": history.Delete,
		"md": history.Delete, "incr": history.Incr, "decr": history.Decr, "ma": history.Incr, "flush_all": history.Flush,
	}
	modes = map[string]history.Kind{"ME": history.Add, "MR": history.Replace, "MA": history.Append, "MP": history.Prepend, "MD": history.Decr}
)

// parse reads the rest of a command: the inverse of what history's clients send.
func parse(r *bufio.Reader, fields []string) (op history.Op, err error) {
	if len(fields) == 0 {
		return op, errors.New("no command")
	}
	kind, ok := verbs[fields[0]]
	if !ok || len(fields) < 2 && kind != history.Flush {
		return op, fmt.Errorf("not known: %.40q", fields)
	}
	op.Kind = kind
	if kind == history.Flush {
		return op, nil
	}
	op.Key = fields[1]
	args := fields[2:]
	number := func(i int) (n uint64) {
		if err == nil && i >= len(args) {
			err = errors.New("too short")
		}
		if err == nil {
			n, err = strconv.ParseUint(args[i], 10, 64)
		}
		return n
	}
	size := -1
	switch fields[0] {
	case "ms", "ma":
		if fields[0] == "ms" {
			size = int(number(0))
		}
		for _, f := range args {
			if m, ok := modes[f]; ok {
				op.Kind = m
				continue
			}
			n, _ := strconv.ParseUint(f[1:], 10, 64) // others have no number
			switch f[0] {
			case 'C':
				op.Kind, op.Compare = history.CAS, n
			case 'D':
				op.Delta = n
			case 'T':
				op.TTL = int(n)
			}
		}
	case "incr", "decr":
		op.Delta = number(0)
	case "set", "add", "replace", "append", "prepend", "cas":
		op.TTL, size = int(number(1)), int(number(2))
		if kind == history.CAS {
			op.Compare = number(3)
		}
	}
	if err != nil || size < 0 {
		return op, err
	}
	if size > 16<<20 {
		return op, errors.New("too large")
	}
	data := make([]byte, size+2)
	if _, err := io.ReadFull(r, data); err != nil {
		return op, err
	}
	op.Value = string(data[:size])
	return op, nil
}

var (
	text = map[history.Status]string{
		history.Miss: "END", history.Stored: "STORED", history.NotStored: "NOT_STORED", history.Exists: "EXISTS",
		history.NotFound: "NOT_FOUND", history.Deleted: "DELETED", history.Flushed: "OK",
	}
	meta = map[history.Status]string{
		history.Miss: "EN", history.NotStored: "NS", history.Exists: "EX", history.NotFound: "NF", history.Deleted: "HD", history.Flushed: "OK",
	}
)

// answer says what came of a command in the dialect it was in.
func answer(w *bufio.Writer, fields []string, op history.Op, out history.Outcome) {
	number := strconv.FormatUint(out.Number, 10)
	switch speaksMeta := fields[0][0] == 'm'; {
	case out.Status == history.Hit && speaksMeta:
		fmt.Fprintf(w, "VA %d c%d\r\n%s\r\n", len(out.Value), out.Version, out.Value)
	case out.Status == history.Hit:
		fmt.Fprintf(w, "VALUE %s 0 %d %d\r\n%s\r\nEND\r\n", op.Key, len(out.Value), out.Version, out.Value)
	case out.Status == history.Counted && speaksMeta:
		fmt.Fprintf(w, "VA %d c%d\r\n%s\r\n", len(number), out.Version, number)
	case out.Status == history.Counted:
		fmt.Fprintf(w, "%s\r\n", number)
	case out.Status == history.Stored && speaksMeta:
		fmt.Fprintf(w, "HD c%d\r\n", out.Version)
	case speaksMeta:
		fmt.Fprintf(w, "%s\r\n", meta[out.Status])
	default:
		fmt.Fprintf(w, "%s\r\n", text[out.Status])
	}
}
