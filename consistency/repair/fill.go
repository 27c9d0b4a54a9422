package repair

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/replica"
)

const (
	// streamKeys asks for all keys whose bytes a controller has, streamValues for
	// the bytes of those named. 3 * cluster.MinKind was a call without a position, and is
	// given to nothing else.
	streamKeys   byte = 3*cluster.MinKind + 1
	streamValues byte = streamKeys + 1

	// fillBatch is how many keys are looked for in the store here at a time.
	fillBatch = 256
	// fillEvery is how often the store is asked how much it has.
	fillEvery = 2 * time.Second
	// fillPauseMost is the longest pause between two passes; the shortest is twice
	// fillEvery.
	fillPauseMost = 10 * time.Minute
	// fillSlack is how many items the store may lack, and fillShare as a share of
	// all, before they are looked for: each read of one finds it, too.
	fillSlack = 16
	fillShare = 100
)

// Filler brings the store here what it lacks of what the index names, because it
// began empty, lost something, or was replaced: all at once, before somebody asks and,
// above all, before the store of another controller is replaced, too.
type Filler struct {
	cluster *cluster.Cluster
	replica *replica.Replica
	peers   func() []cluster.Member
	rate    atomic.Int64
	every   time.Duration // fillEvery
	log     *zap.Logger

	mu     sync.Mutex
	status FillStatus
}

// FillStatus is how far a Filler is.
type FillStatus struct {
	From    string // whom a pass that is under way asks; empty: none is
	Looked  int64  // keys of this pass that were looked for here, of about Of
	Of      int64
	Lacking int64 // of these, not here: they are fetched
	Fetched int64 // values, by all passes
	Passes  int64 // that came to their end
}

// NewFiller begins to answer the others, and sees to the store here once it is
// [Filler.Run]. rate is how many bytes are fetched in a second, 0 for no limit.
func NewFiller(c *cluster.Cluster, r *replica.Replica, peers func() []cluster.Member, rate int64, log *zap.Logger) *Filler {
	f := &Filler{cluster: c, replica: r, peers: peers, every: fillEvery, log: log}
	f.SetRate(rate)
	c.HandleStream(streamKeys, f.serveKeys)
	c.HandleStream(streamValues, f.serveValues)
	return f
}

// SetRate sets the rate of what is fetched from now on.
func (f *Filler) SetRate(rate int64) { f.rate.Store(rate) }

// Status tells how far it is.
func (f *Filler) Status() FillStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Run watches the store until ctx ends.
func (f *Filler) Run(ctx context.Context) {
	var seen watch
	pause, next, turn := 2*f.every, time.Time{}, 0
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		short := f.short(ctx, &seen)
		if seen.broke {
			next = time.Time{}
		}
		peers := f.peers()
		if !short || time.Now().Before(next) || len(peers) == 0 {
			continue
		}
		if seen.broke {
			seen.broke, seen.owed = false, len(peers)
		}
		// The next time somebody else: what one lacks another may have.
		m := peers[turn%len(peers)]
		turn++
		began := time.Now()
		err := f.pass(ctx, m)
		switch {
		case err == nil:
			seen.owed = max(seen.owed-1, 0)
		case ctx.Err() == nil:
			f.log.Warn("the store here lacks values, and they could not be fetched; trying again", zap.String("from", m.Name), zap.Error(err))
		}
		// One that is short still, perhaps for want of memory, is left in peace for longer.
		if f.short(ctx, &seen) {
			pause = min(2*pause, fillPauseMost)
		} else {
			pause = 2 * f.every
		}
		next = time.Now().Add(max(pause, 2*time.Since(began)))
	}
}

// watch is what was found the last time.
type watch struct {
	gone    int64 // reads that found nothing
	held    int64 // by the store
	damages int64 // of the store
	broke   bool  // there is a new one
	owed    int   // passes that it takes since the last: one of each peer
}

// short reports whether the store seems to lack something.
func (f *Filler) short(ctx context.Context, last *watch) bool {
	st := f.replica.Stats()
	slack := max(fillSlack, st.Items/fillShare)
	last.broke = last.broke || st.Damages > last.damages
	is := last.broke || last.owed > 0 || st.Gone-last.gone >= fillSlack
	last.gone, last.damages = st.Gone, st.Damages
	ctx, cancel := context.WithTimeout(ctx, f.every)
	defer cancel()
	held, err := f.replica.Held(ctx)
	switch {
	case errors.Is(err, replica.ErrNoCount):
		return is
	case err != nil:
		return false // there is nobody to fill
	}
	// It may have much that the index does not name, from before this cluster: so that
	// it lost something tells more than how much it has.
	is = is || held+slack < st.Items || held+slack < last.held
	last.held = held
	return is
}

// Once makes one pass, from the first of the others that can give one. An error:
// none of them can.
func (f *Filler) Once(ctx context.Context) error {
	failed := errors.New("no other controller can tell its keys")
	for _, m := range f.peers() {
		err := f.pass(ctx, m)
		if err == nil {
			return nil
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", m.Name, err))
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}

// pass has m tell its keys, looks which of those that the index names the store here
// lacks, and fetches them.
func (f *Filler) pass(ctx context.Context, m cluster.Member) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	f.status.From, f.status.Looked, f.status.Lacking, f.status.Of = m.Name, 0, 0, int64(f.replica.Len())
	f.mu.Unlock()
	began := time.Now()
	err := f.fill(ctx, m.ID)
	f.mu.Lock()
	st := f.status
	f.status.From = ""
	if err == nil {
		f.status.Passes++
	}
	f.mu.Unlock()
	if err == nil && st.Lacking > 0 {
		f.log.Info("the store here lacked values, which were fetched", zap.String("from", m.Name),
			zap.Int64("looked", st.Looked), zap.Int64("lacking", st.Lacking), zap.Duration("took", time.Since(began)))
	}
	return err
}

func (f *Filler) fill(ctx context.Context, from uint64) error {
	return eachKeys(ctx, f.cluster, f.replica, from, func(keys []attune.Key) error {
		lacking, err := f.replica.Lacking(ctx, keys)
		if err != nil {
			return err
		}
		n, err := f.fetch(ctx, from, lacking)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.status.Looked += int64(len(keys))
		f.status.Lacking += int64(len(lacking))
		f.status.Fetched += n
		return err
	})
}

// eachKeys calls fn with all keys that a peer tells, fillBatch at a time, which are valid
// until it returns.
func eachKeys(ctx context.Context, c *cluster.Cluster, r *replica.Replica, from uint64, fn func(keys []attune.Key) error) error {
	stream, err := c.Stream(ctx, from, streamKeys, nil)
	if err != nil {
		return err
	}
	defer stream.Close()
	in := bufio.NewReader(stream)
	keys := make([]attune.Key, 0, fillBatch)
	for done := false; !done; {
		text, err := readText(in)
		if err != nil {
			return fmt.Errorf("keys of a peer: %w", err)
		}
		if done = len(text) == 0; !done {
			keys = append(keys, attune.Key{Text: text, Hash: r.Hash(text)})
		}
		if len(keys) < fillBatch && !done {
			continue
		}
		if err := fn(keys); err != nil {
			return err
		}
		keys = keys[:0]
	}
	return nil
}

// fetch gets the values of keys.
func (f *Filler) fetch(ctx context.Context, from uint64, keys []attune.Key) (n int64, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	var request []byte
	for _, key := range keys {
		request = appendText(request, key.Text)
	}
	stream, err := f.cluster.Stream(ctx, from, streamValues, request)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	return f.replica.Import(ctx, Paced(ctx, stream, f.rate.Load()))
}

func (f *Filler) serveKeys(ctx context.Context, _ uint64, _ []byte, w io.Writer) error {
	out := bufio.NewWriter(w)
	var buf []byte
	var failed error
	err := f.replica.Keys(ctx, func(text []byte) bool {
		buf = appendText(buf[:0], text)
		_, failed = out.Write(buf)
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	if err := out.WriteByte(0); err != nil {
		return err
	}
	return out.Flush()
}

func (f *Filler) serveValues(ctx context.Context, _ uint64, request []byte, w io.Writer) error {
	var keys [][]byte
	for len(request) > 0 {
		n := int(request[0])
		if n == 0 || len(request) < 1+n {
			return errRequest
		}
		keys, request = append(keys, request[1:1+n]), request[1+n:]
	}
	return f.replica.ExportKeys(ctx, w, keys)
}

// A text is its length, 1 to 255, and itself; a length of 0 is the end.
func appendText(b, text []byte) []byte {
	return append(append(b, byte(len(text))), text...)
}

func readText(r *bufio.Reader) ([]byte, error) {
	n, err := r.ReadByte()
	if err != nil {
		return nil, noEOF(err)
	}
	text := make([]byte, n)
	_, err = io.ReadFull(r, text)
	return text, noEOF(err)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Paced reads r at rate bytes a second, so that clients need not wait behind what
// nobody waits for. 0 is no limit.
func Paced(ctx context.Context, r io.Reader, rate int64) io.Reader {
	if rate == 0 {
		return r
	}
	return &paced{ctx: ctx, r: r, rate: rate, began: time.Now()}
}

type paced struct {
	ctx   context.Context
	r     io.Reader
	rate  int64
	began time.Time
	n     int64
}

// Read implements io.Reader.
func (p *paced) Read(b []byte) (int, error) {
	due := p.began.Add(time.Duration(float64(p.n) / float64(p.rate) * float64(time.Second)))
	if wait := time.Until(due); wait > time.Millisecond {
		select {
		case <-time.After(wait):
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		}
	}
	n, err := p.r.Read(b)
	p.n += int64(n)
	return n, err
}
