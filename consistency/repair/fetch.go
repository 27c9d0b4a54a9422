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
	callFetch    byte = streamValues + 1
	fetchHead         = 8 + 8
	fetchTimeout      = 300 * time.Millisecond
	// fetchPoll is how often one who is behind looks whether it is not any more.
	fetchPoll = time.Millisecond
)

// ErrSilent is why an item is neither shown nor removed whose bytes are lost here.
var ErrSilent = errors.New("the value is lost here, and a controller that may have it does not answer; try again")

var errRequest = errors.New("a request for bytes that cannot be read")

// Position is how far a replica is in the one order of all changes: it shows those up
// to applied, and none beyond begun. Both are 0 at a level that has no such order.
type Position func() (applied, begun uint64)

// Fetcher gets bytes from other controllers, and gives them those they ask for.
type Fetcher struct {
	cluster  *cluster.Cluster
	replica  *replica.Replica
	stage    *Stager
	peers    func() []cluster.Member
	position Position

	asked, found atomic.Int64
}

// NewFetcher begins to answer the others. peers are those to ask, best first; stage
// gets what is fetched.
func NewFetcher(c *cluster.Cluster, r *replica.Replica, stage *Stager, peers func() []cluster.Member, position Position) *Fetcher {
	f := &Fetcher{cluster: c, replica: r, stage: stage, peers: peers, position: position}
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

// Fetch asks the others for the bytes of exactly one version, and has them brought to
// the store here. It keeps key.
// Nil and no error: none of those that can be reached has them; sure says that all
// who are believed to be alive said so. Errors: the cause of ctx.
func (f *Fetcher) Fetch(ctx context.Context, key attune.Key, it attune.Item) (value []byte, sure bool, err error) {
	f.asked.Add(1)
	sure = true
	body := binary.LittleEndian.AppendUint64(nil, uint64(it.Stored))
	_, begun := f.position()
	body = binary.LittleEndian.AppendUint64(body, begun)
	body = append(body, key.Text...)
	for _, m := range f.peers() {
		once, cancel := context.WithTimeout(ctx, fetchTimeout)
		answer, err := f.cluster.Call(once, m.ID, callFetch, body)
		cancel()
		if err != nil {
			sure = false
		}
		if err != nil || len(answer) == 0 {
			continue
		}
		f.found.Add(1)
		it.Value = answer[1:]
		f.stage.Restore(key, it) // the store here may be what nobody should wait for
		return it.Value, true, nil
	}
	return nil, sure, context.Cause(ctx)
}

// serve answers Fetch: a byte and the value, or nothing if it does not have that.
// A store that failed, or is late, may have it: that is an error. And who is behind
// the one that asks is about to have it, so it says no when it is not any more.
func (f *Fetcher) serve(ctx context.Context, _ uint64, body []byte) ([]byte, error) {
	if len(body) <= fetchHead {
		return nil, errRequest
	}
	stored, position := attune.Version(binary.LittleEndian.Uint64(body)), binary.LittleEndian.Uint64(body[8:])
	key := attune.Key{Text: body[fetchHead:], Hash: f.replica.Hash(body[fetchHead:])}
	for {
		applied, _ := f.position() // asked before the replica is
		if answer, err := f.answer(ctx, key, stored); answer != nil || err != nil || applied >= position {
			return answer, err
		}
		select {
		case <-time.After(fetchPoll):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (f *Fetcher) answer(ctx context.Context, key attune.Key, stored attune.Version) ([]byte, error) {
	answer := make([]byte, 1, 4<<10)
	it, err := f.replica.Get(ctx, key, answer[1:], false)
	switch {
	case errors.Is(err, replica.ErrGone), errors.Is(err, replica.ErrBusy):
		return nil, nil
	case err != nil:
		return nil, err // the store may have it, and cannot say so
	case it.Version == 0 || it.Stored != stored:
		return nil, nil
	}
	return append(answer, it.Value...), nil
}
