package gossip

import (
	"context"
	"slices"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/kvadapter"
)

// simStore is a store of little memory. Where very many nodes are in one process
// they share the bytes, which in a simulation nobody ever changes.
type simStore struct {
	node *simNode
	recs map[attune.KeyHash]simRecord
}

type simRecord struct {
	text []byte
	rec  kvadapter.Record
}

var (
	_ kvadapter.Memory = (*simStore)(nil)
	_ kvadapter.Loader = (*simStore)(nil)
)

func (s *simStore) Get(_ context.Context, key attune.Key, buf []byte) (kvadapter.Record, error) {
	r, ok := s.recs[key.Hash]
	if !ok {
		return kvadapter.Record{}, kvadapter.ErrNotFound
	}
	r.rec.Value = append(buf[:0], r.rec.Value...)
	return r.rec, nil
}

func (s *simStore) Load(h attune.KeyHash, buf []byte) ([]byte, kvadapter.Record, bool) {
	r, ok := s.recs[h]
	if !ok {
		return buf[:0], kvadapter.Record{}, false
	}
	n := len(r.text)
	buf = append(append(buf[:0], r.text...), r.rec.Value...)
	r.rec.Value = buf[n:]
	return buf[:n], r.rec, true
}

func (s *simStore) Put(_ context.Context, key attune.Key, rec kvadapter.Record) error {
	r := simRecord{key.Text, rec}
	if len(s.node.net.nodes) <= simDirect {
		r = simRecord{slices.Clone(r.text), kvadapter.Record{Stamp: rec.Stamp, Value: slices.Clone(rec.Value)}}
	}
	s.recs[key.Hash] = r
	if s.node.net.stored != nil {
		s.node.net.stored(s.node, rec.Stamp.Version)
	}
	return nil
}

func (s *simStore) Delete(_ context.Context, key attune.Key) error {
	delete(s.recs, key.Hash)
	return nil
}

func (s *simStore) Used() int64         { return 0 }
func (s *simStore) Prefetch(attune.Key) {}
func (s *simStore) Close() error        { return nil }
