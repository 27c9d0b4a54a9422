package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/replica"
)

const (
	// callFetch asks for the value of a key, of exactly one version: that, the
	// position that who asks has begun, and the key.
	callFetch byte = streamValues + 1
	fetchHead      = 8 + 8
	// fetchTimeout is how long a peer may take, and as long again for each fetchStride
	// bytes.
	fetchTimeout = 300 * time.Millisecond
	fetchStride  = 1 << 20
	// fetchPoll is how often one who is behind looks whether it is not any more.
	fetchPoll = time.Millisecond
)

// ErrSilent is why an item is neither shown nor removed whose bytes are lost here.
var ErrSilent = errors.New("the value is lost here, and a controller that may have it does not answer; try again")

var errRequest = errors.New("a request for bytes that cannot be read")

// Progress tells how far a replica is, so that nobody says no of what it is about to
// have.
type Progress interface {
	// Begun is a position in the one order of all changes: this replica shows none
	// beyond. It is 0 at a level that has no such order.
	Begun() uint64
	// Behind reports whether a change up to a position, or version v of a key, may be
	// still to come here.
	Behind(position uint64, key attune.Key, v attune.Version) bool
}

// Peers are the controllers to ask, best first. all says that there are no others who
// may have what these have not.
type Peers func() (ms []cluster.Member, all bool)

// Fetcher gets bytes from other controllers, and gives them those they ask for.
type Fetcher struct {
	cluster  *cluster.Cluster
	replica  *replica.Replica
	stage    *Stager
	peers    Peers
	progress Progress

	asked, found atomic.Int64
}

// NewFetcher begins to answer the others. stage gets what is fetched.
func NewFetcher(c *cluster.Cluster, r *replica.Replica, stage *Stager, peers Peers, progress Progress) *Fetcher {
	f := &Fetcher{cluster: c, replica: r, stage: stage, peers: peers, progress: progress}
	c.HandleCall(callFetch, f.serve) // the answer may be long, the question is not
	return f
}

// Missing reports whether err, of reading an item here, says no more than that the
// store here does not give its bytes: others may. gone says that they are lost here,
// and not just out of reach.
func Missing(err error) (missing, gone bool) {
	gone = errors.Is(err, replica.ErrGone)
	return gone || errors.Is(err, kvadapter.ErrUnavailable), gone
}

// Answer is what the others say of bytes that are lost here.
type Answer struct {
	Value []byte // nil: none of those that can be reached has them
	Sure  bool   // somebody has them; or all [Peers] said that they do not, and these are all
	// Overtaken says that somebody has another version of the key, newer than what the
	// index here has, or else it would have been asked for that.
	Overtaken bool
}

// Fetch asks the others for the bytes of exactly one version, and has them brought to
// the store here. It keeps key. Errors: the cause of ctx.
func (f *Fetcher) Fetch(ctx context.Context, key attune.Key, it attune.Item) (a Answer, err error) {
	f.asked.Add(1)
	body := binary.LittleEndian.AppendUint64(nil, uint64(it.Stored))
	body = binary.LittleEndian.AppendUint64(body, f.progress.Begun())
	body = append(body, key.Text...)
	ms, all := f.peers()
	a.Sure = all
	for _, m := range ms {
		once, cancel := context.WithTimeout(ctx, fetchTimeout+fetchTimeout*time.Duration(it.Size)/fetchStride)
		answer, err := f.cluster.Call(once, m.ID, callFetch, body)
		cancel()
		a.Sure = a.Sure && err == nil
		if err != nil || len(answer) == 0 {
			continue
		}
		if answer[0] == answerOther {
			a.Overtaken = true
			continue
		}
		if len(answer)-1 != it.Size {
			continue // by the clock there it has expired, and its bytes were freed
		}
		f.found.Add(1)
		it.Value = answer[1:]
		f.stage.Restore(key, it) // the store here may be what nobody should wait for
		return Answer{Value: it.Value, Sure: true}, nil
	}
	return a, context.Cause(ctx)
}

// An answer to Fetch is empty, for what is not there, or begins with one of these.
const (
	answerValue = iota // the bytes follow
	answerOther        // there is another version
)

// serve answers Fetch.
// A store that failed, or is late, may have it: that is an error. And who is behind
// the one that asks is about to have it, so it says no when it is not any more.
func (f *Fetcher) serve(ctx context.Context, _ uint64, body []byte) ([]byte, error) {
	if len(body) <= fetchHead {
		return nil, errRequest
	}
	stored, position := attune.Version(binary.LittleEndian.Uint64(body)), binary.LittleEndian.Uint64(body[8:])
	key := attune.Key{Text: body[fetchHead:], Hash: f.replica.Hash(body[fetchHead:])}
	for {
		behind := f.progress.Behind(position, key, stored) // asked before the replica is
		it := f.replica.Peek(key, false)
		if it.Stored == stored {
			return f.answer(ctx, key, stored)
		}
		if !behind {
			return other(it), nil
		}
		select {
		case <-time.After(fetchPoll):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// other is the answer of who has it instead of what was asked for.
func other(it attune.Item) []byte {
	if it.Version == 0 {
		return nil
	}
	return []byte{answerOther}
}

// answer is what the store here gives of an item whose bytes were asked for.
func (f *Fetcher) answer(ctx context.Context, key attune.Key, stored attune.Version) ([]byte, error) {
	answer := append(make([]byte, 0, 4<<10), answerValue)
	it, err := f.replica.Get(ctx, key, answer[1:], false)
	switch {
	case errors.Is(err, replica.ErrGone):
		return nil, nil
	case err != nil:
		return nil, err // the store may have it, and cannot say so
	case it.Stored != stored: // it was written meanwhile
		return other(it), nil
	}
	return append(answer, it.Value...), nil
}
