package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Target is a controller that clients may ask.
type Target struct{ Name, Addr string }

// Recorder has clients execute a workload and writes down what they see.
type Recorder struct {
	Targets  []Target
	Clients  int
	Workload Workload
	// Size is what values are filled up to, in bytes, by a workload that appends
	// nothing to them.
	Size int
	// Hop makes every command go to a random controller, over a new connection.
	// Else a client stays where it is until a command of it is Unknown.
	Hop bool
	// Pause is how long a client rests between two commands, on average. Without
	// rest a history is soon too long to search.
	Pause time.Duration
	// Timeout is how long a client waits for an answer; 0 is 3 s.
	Timeout time.Duration
	// Seed makes the commands, not their timing, repeatable.
	Seed uint64

	start    time.Time
	clients  atomic.Int64
	sessions atomic.Int64
	progress atomic.Int64
	mu       sync.Mutex
	events   History // guarded by mu
}

// afterUnknown is how long a client waits when it does not know what became of
// its command. It then reads until a read is answered, before it does anything
// else: reads of unknown outcome mean nothing, but writes may happen any time
// later, and a search must try.
const afterUnknown = 50 * time.Millisecond

// Run records until ctx ends. It may be called once.
func (r *Recorder) Run(ctx context.Context) History {
	r.Begin()
	var wg sync.WaitGroup
	for i := range r.Clients {
		wg.Go(func() { r.client(ctx, i) })
	}
	wg.Wait()
	return r.History()
}

// History returns what has been written down: what Ask did, and, once it has
// ended, all of Run.
func (r *Recorder) History() History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// Keys returns the keys that the workload has used so far, of those that turn.
func (r *Recorder) Keys() (keys []string) {
	if r.Workload.Turn == 0 {
		return nil
	}
	for turn := range r.Workload.turn(r.progress.Load()) + 1 {
		for i := range r.Workload.Keys {
			keys = append(keys, r.Workload.key(turn, i))
		}
	}
	return keys
}

// Ask has a new client execute one command, beside those of the workload, and
// writes it down. It may be called on any goroutine after Begin.
func (r *Recorder) Ask(target Target, op Op) Outcome {
	conn, err := Dial(target.Addr, false, r.Timeout)
	if err != nil {
		return Outcome{Value: err.Error()}
	}
	defer conn.Close()
	e := Event{Node: target.Name, Op: op, Call: r.Now()}
	e.Out = conn.Do(op, r.Size)
	e.Return = r.Now()
	if e.Out.Status == Unknown {
		e.Return = Forever
	}
	r.Add(e)
	return e.Out
}

// Add writes down an event that somebody else knows of, such as a loss that was
// brought about. Its client and session are set.
func (r *Recorder) Add(e Event) {
	e.Client, e.Session = int(r.clients.Add(1)), int(r.sessions.Add(1))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// Removed writes down that any of Keys may have gone since some moment, with what backs
// a controller: a delete of unknown outcome.
func (r *Recorder) Removed(since int64) {
	for _, key := range r.Keys() {
		r.Add(Event{Node: "backend", Op: Op{Kind: Delete, Key: key}, Call: since, Return: Forever})
	}
}

// Begin starts the clock. Run does so if it was not called.
func (r *Recorder) Begin() {
	if r.start.IsZero() {
		r.start = time.Now()
	}
	if r.Timeout == 0 {
		r.Timeout = 3 * time.Second
	}
}

// Now is the time of the history's clock.
func (r *Recorder) Now() int64 { return int64(time.Since(r.start)) }

// Time is the wall clock's for a time of the history's.
func (r *Recorder) Time(at int64) time.Time { return r.start.Add(time.Duration(at)) }

// Answered is how many commands have been answered so far.
func (r *Recorder) Answered() int64 { return r.progress.Load() }

// worker is one client after the other: who does not know what became of a
// command is never heard of again, and a new one takes over.
type worker struct {
	*Recorder
	gen     *Gen
	rand    *rand.Rand
	text    bool
	client  int
	session int
	target  int
	conn    *Client
	events  History
}

func (r *Recorder) client(ctx context.Context, n int) {
	// Every fourth speaks the dialect that does not tell the versions of writes.
	w := &worker{Recorder: r, rand: rand.New(rand.NewPCG(r.Seed, uint64(n))), text: n%4 == 3, target: n}
	w.gen = NewGen(&r.Workload, n, w.rand, &r.progress)
	w.client = int(r.clients.Add(1))
	defer func() {
		w.hangUp()
		r.mu.Lock()
		r.events = append(r.events, w.events...)
		r.mu.Unlock()
	}()
	wary := false
	for ctx.Err() == nil {
		op := w.gen.Next(wary)
		out, asked := w.do(ctx, op)
		if !asked {
			w.target++
			pause(ctx, afterUnknown)
			continue
		}
		if out.Status == Unknown || out.Status == Broken {
			w.hangUp()
			w.client = int(r.clients.Add(1))
			w.target++
			wary = true
			pause(ctx, afterUnknown)
			continue
		}
		wary = false
		r.progress.Add(1)
		w.gen.Saw(op, out)
		if r.Pause > 0 {
			pause(ctx, time.Duration(w.rand.Int64N(int64(2*r.Pause))))
		}
	}
}

// do executes op and writes it down, unless there is nobody to ask.
func (w *worker) do(ctx context.Context, op Op) (out Outcome, asked bool) {
	if w.Hop {
		w.hangUp()
		w.target = w.rand.IntN(len(w.Targets))
	}
	target := w.Targets[w.target%len(w.Targets)]
	if w.conn == nil {
		conn, err := Dial(target.Addr, w.text, w.Timeout)
		if err != nil {
			return out, false
		}
		w.conn, w.session = conn, int(w.sessions.Add(1))
	}
	// The end of the recording does not wait for those that are not answered.
	conn := w.conn
	stop := context.AfterFunc(ctx, func() { conn.giveUp(w.Timeout / 2) })
	call := w.Now()
	out = conn.Do(op, w.Size)
	end := w.Now()
	stop()
	if out.Status == Unknown {
		end = Forever
	}
	w.events = append(w.events, Event{
		Client: w.client, Session: w.session, Node: target.Name, Op: op, Out: out, Call: call, Return: end,
	})
	return out, true
}

func (w *worker) hangUp() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// ReadAll reads keys from target, many at a time.
func ReadAll(target Target, keys []string) (map[string]Outcome, error) {
	read := make(map[string]Outcome, len(keys))
	err := batches(target, keys, Get, func(key string, out Outcome) { read[key] = out })
	if err != nil {
		return nil, err
	}
	return read, nil
}

// DeleteAll deletes keys at target, many at a time, as far as they are there.
func DeleteAll(target Target, keys []string) error {
	return batches(target, keys, Delete, func(string, Outcome) {})
}

// batches has target execute a command for each of keys, and calls f with what it
// answers.
func batches(target Target, keys []string, kind Kind, f func(key string, out Outcome)) error {
	const batch = 100
	c, err := Dial(target.Addr, false, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	for some := range slices.Chunk(keys, batch) {
		_ = c.conn.SetDeadline(time.Now().Add(c.timeout))
		c.out = c.out[:0]
		for _, key := range some {
			c.out = appendMeta(c.out, Op{Kind: kind, Key: key}, 0)
		}
		if _, err := c.conn.Write(c.out); err != nil {
			return err
		}
		for _, key := range some {
			line, err := c.line()
			if err != nil {
				return err
			}
			out, ok, err := c.metaAnswer(Op{Kind: kind, Key: key}, line)
			if err != nil || !ok {
				return fmt.Errorf("%v %s at %s: %s, %v", kind, key, target.Name, line, err)
			}
			f(key, out)
		}
	}
	return nil
}

// Read asks target for a key until it is answered with anything but an error, at
// most until ctx ends. It records nothing.
func Read(ctx context.Context, target Target, key string) (Outcome, error) {
	last := Outcome{Value: "never asked"}
	for ctx.Err() == nil {
		c, err := Dial(target.Addr, false, time.Second)
		if err == nil {
			last = c.Do(Op{Kind: Get, Key: key}, 0)
			c.Close()
			if last.Status != Unknown {
				return last, nil
			}
		} else {
			last.Value = err.Error()
		}
		pause(ctx, afterUnknown)
	}
	return last, errors.New(target.Name + " does not answer a get of " + key + ": " + last.Value)
}
