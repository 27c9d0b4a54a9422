package testbed

import (
	"bufio"
	"bytes"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// maxFrame is the longest frame that is forwarded, in bytes: a value of 128 MiB
	// with what surrounds it, and as much again.
	maxFrame = 256<<20 + 1
	// maxHello bounds the first frame.
	maxHello = 1 << 10
	// maxQueued is how many bytes of a connection wait for their time; then no more
	// are read.
	maxQueued = 64 << 20
	bulk      = 3 // the class of streams
	kindHello = 0
)

// serve forwards one connection.
func (n *Network) serve(dialer *net.TCPConn, to, target string) {
	defer dialer.Close()
	ctx, cancel := context.WithCancelCause(n.ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { dialer.Close() })
	defer stop()

	r := bufio.NewReaderSize(dialer, 64<<10)
	_ = dialer.SetReadDeadline(time.Now().Add(Patience))
	class, hello, from, err := readHello(r)
	if err != nil {
		if ctx.Err() == nil && !gone(err) {
			n.note(fmt.Sprintf("to %s: %v", to, err))
		}
		return
	}
	_ = dialer.SetReadDeadline(time.Time{})
	l := link{from, to}
	err = n.open(ctx.Done(), l)
	if err == nil {
		pauseFor(ctx, n.delay(l))
		err = n.forward(ctx, cancel, l, class, hello, r, dialer, target)
	}
	if errors.Is(err, errReset) {
		_ = dialer.SetLinger(0) // a reset, not an end
	}
}

// forward connects to the target and forwards until either side, or a rule, ends
// it.
func (n *Network) forward(ctx context.Context, cancel context.CancelCauseFunc, l link, class byte, hello []byte, r *bufio.Reader, dialer *net.TCPConn, target string) error {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", target)
	if err != nil {
		return errReset // nobody listens, and the dialer should learn that as it would from the target
	}
	acceptor := c.(*net.TCPConn)
	defer acceptor.Close()
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), errReset) {
			_ = acceptor.SetLinger(0)
			_ = dialer.SetLinger(0)
		}
		acceptor.Close()
		dialer.Close()
	})
	defer stop()
	if _, err := acceptor.Write(append([]byte{class}, hello...)); err != nil {
		return err
	}

	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { cancel(n.back(ctx, l, class, acceptor, dialer)) })
	wg.Go(func() { // a rule may end what has nothing to say
		for ctx.Err() == nil {
			rule, changed := n.rule(l)
			if rule.Mode == Reset {
				cancel(errReset)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	})
	q := newQueue()
	wg.Go(func() { cancel(n.write(ctx, l, q, acceptor)) })
	if err = n.read(ctx, l, class, r, q); err == io.EOF {
		// What the dialer sent before it hung up still arrives, when its time comes.
		q.end()
	} else {
		cancel(err)
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// back forwards what the acceptor answers.
func (n *Network) back(ctx context.Context, l link, class byte, acceptor, dialer net.Conn) error {
	links := []link{l}
	if class == bulk {
		links = append(links, link{l.to, l.from})
	}
	b := make([]byte, 64<<10)
	for {
		k, err := acceptor.Read(b)
		if err != nil {
			return err
		}
		if err := n.open(ctx.Done(), links...); err != nil {
			return err
		}
		if class == bulk {
			pauseFor(ctx, n.delay(links[1]))
		}
		if _, err := dialer.Write(b[:k]); err != nil {
			return err
		}
	}
}

// read takes frames from the dialer and throws the dice for them.
func (n *Network) read(ctx context.Context, l link, class byte, r *bufio.Reader, q *queue) error {
	for {
		// What is held stays with the sender, for the most part.
		if err := n.open(ctx.Done(), l); err != nil {
			return err
		}
		if !q.room(ctx.Done()) {
			return context.Cause(ctx)
		}
		frame, err := readFrame(r, maxFrame)
		if err != nil {
			if ctx.Err() == nil && !gone(err) {
				n.note(fmt.Sprintf("%s to %s: %v", l.from, l.to, err))
			}
			return err
		}
		now := time.Now()
		if class == bulk || frame[4] == kindHello {
			q.put(frame, now.Add(n.delay(l)), false)
			continue
		}
		due, late := n.fate(l)
		for i := range due {
			q.put(frame, now.Add(due[i]), late[i])
		}
	}
}

// write sends frames when they are due.
func (n *Network) write(ctx context.Context, l link, q *queue, acceptor net.Conn) error {
	for {
		frame, ok := q.take(ctx.Done())
		if !ok {
			return io.EOF
		}
		if err := n.open(ctx.Done(), l); err != nil {
			return err
		}
		if _, err := acceptor.Write(frame); err != nil {
			return err
		}
	}
}

// readHello reads the class of a connection and its first frame, and returns
// these and the name of who sent them.
func readHello(r *bufio.Reader) (class byte, frame []byte, from string, err error) {
	if class, err = r.ReadByte(); err != nil {
		return 0, nil, "", err
	}
	if frame, err = readFrame(r, maxHello); err != nil {
		return 0, nil, "", err
	}
	// len 4, kind, "attn", version, class, cluster 8, from 8, to 8, then the name
	const name = 4 + 1 + 4 + 1 + 1 + 24
	if frame[4] != kindHello || len(frame) <= name || string(frame[5:9]) != "attn" || len(frame) < name+1+int(frame[name]) {
		return 0, nil, "", fmt.Errorf("a first frame that is no hello: %.60q", frame)
	}
	return class, frame, string(frame[name+1 : name+1+int(frame[name])]), nil
}

// readFrame reads one frame, its length and kind included.
func readFrame(r *bufio.Reader, most uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size == 0 || size > most {
		return nil, fmt.Errorf("a frame of %d bytes", size)
	}
	// The buffer grows as the bytes come, whatever the length says.
	var b bytes.Buffer
	b.Write(head[:])
	if _, err := io.CopyN(&b, r, int64(size)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b.Bytes(), nil
}

// gone reports whether err is a connection that ended, in whatever way.
func gone(err error) bool {
	var op *net.OpError
	return err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op)
}

func pauseFor(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// queue holds the frames of a connection until they are due.
type queue struct {
	mu     sync.Mutex // guards what follows
	frames frames
	bytes  int
	last   time.Time // when the newest frame that keeps the order is due
	seq    uint64
	ended  bool
	filled chan struct{} // of one place: something may be due
	taken  chan struct{} // of one place: there may be room
}

func newQueue() *queue {
	return &queue{filled: make(chan struct{}, 1), taken: make(chan struct{}, 1)}
}

// put adds a frame. One that is not late is due after all that are not.
func (q *queue) put(b []byte, due time.Time, late bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !late {
		if due.Before(q.last) {
			due = q.last
		}
		q.last = due
	}
	q.seq++
	q.bytes += len(b)
	heap.Push(&q.frames, timed{b, due, q.seq})
	wake(q.filled)
}

// end has take say so when no frame is left.
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	wake(q.filled)
}

// room waits until there is room for one more frame.
func (q *queue) room(gone <-chan struct{}) bool {
	for {
		q.mu.Lock()
		ok := q.bytes < maxQueued
		q.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-q.taken:
		case <-gone:
			return false
		}
	}
}

// take waits until a frame is due. False: there will be none.
func (q *queue) take(gone <-chan struct{}) ([]byte, bool) {
	for {
		q.mu.Lock()
		wait := time.Hour
		if len(q.frames) > 0 {
			if wait = time.Until(q.frames[0].due); wait <= 0 {
				f := heap.Pop(&q.frames).(timed)
				q.bytes -= len(f.b)
				q.mu.Unlock()
				wake(q.taken)
				return f.b, true
			}
		} else if q.ended {
			q.mu.Unlock()
			return nil, false
		}
		q.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-q.filled:
		case <-t.C:
		case <-gone:
			t.Stop()
			return nil, false
		}
		t.Stop()
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// timed is a frame and when it is due; seq breaks ties.
type timed struct {
	b   []byte
	due time.Time
	seq uint64
}

// frames is a heap, the next one first.
type frames []timed

func (f frames) Len() int { return len(f) }
func (f frames) Less(i, j int) bool {
	if !f[i].due.Equal(f[j].due) {
		return f[i].due.Before(f[j].due)
	}
	return f[i].seq < f[j].seq
}
func (f frames) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *frames) Push(x any)   { *f = append(*f, x.(timed)) }
func (f *frames) Pop() any {
	old := *f
	x := old[len(old)-1]
	old[len(old)-1] = timed{}
	*f = old[:len(old)-1]
	return x
}
