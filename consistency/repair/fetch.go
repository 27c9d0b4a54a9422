package repair

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/replica"
)

const (
	// callFetch asks for the value of a key, of exactly one version.
	callFetch    byte = 3 * cluster.MinKind
	fetchTimeout      = 300 * time.Millisecond
)

var errRequest = errors.New("a request for bytes that cannot be read")

// Fetcher gets bytes from other controllers, and gives them those they ask for.
type Fetcher struct {
	cluster *cluster.Cluster
	replica *replica.Replica
	peers   func() []cluster.Member
	log     *zap.Logger
}

// NewFetcher begins to answer the others. peers are those to ask, best first.
func NewFetcher(c *cluster.Cluster, r *replica.Replica, peers func() []cluster.Member, log *zap.Logger) *Fetcher {
	f := &Fetcher{c, r, peers, log}
	c.HandleCall(callFetch, f.serve) // the answer may be long, the question is not
	return f
}

// Fetch asks the others for the bytes of exactly one version, and keeps them here.
// Nil and no error: none of those that can be reached has them; sure says that all
// who are believed to be alive said so. One that is slow, or whose store is not
// there, may have them. Errors: the cause of ctx.
func (f *Fetcher) Fetch(ctx context.Context, key attune.Key, it attune.Item) (value []byte, sure bool, err error) {
	sure = true
	body := binary.LittleEndian.AppendUint64(nil, uint64(it.Stored))
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
		it.Value = answer[1:]
		if err := f.replica.Restore(ctx, key, it); err != nil {
			f.log.Debug("fetched bytes could not be kept", zap.Error(err))
		}
		return it.Value, true, nil
	}
	return nil, sure, context.Cause(ctx)
}

// serve answers Fetch: a byte and the value, or nothing. It is an error that the
// store here does not tell.
func (f *Fetcher) serve(ctx context.Context, _ uint64, body []byte) ([]byte, error) {
	if len(body) < 9 {
		return nil, errRequest
	}
	key := attune.Key{Text: body[8:], Hash: f.replica.Hash(body[8:])}
	answer := make([]byte, 1, 4<<10)
	it, err := f.replica.Get(ctx, key, answer[1:], false)
	if err != nil && !errors.Is(err, replica.ErrGone) {
		return nil, err
	}
	if err != nil || it.Version == 0 || uint64(it.Stored) != binary.LittleEndian.Uint64(body) {
		return nil, nil
	}
	return append(answer, it.Value...), nil
}
