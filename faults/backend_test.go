package faults

import (
	"io"
	"testing"

	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/internal/history"
)

// One controller's backend restarts empty: the bytes are at its peers, so nothing
// is missed, and they are brought back.
func TestRow14OneBackendEmpty(t *testing.T) {
	oneBackend(t, linearizable, func(m *attunetest.Memcached) {
		m.Kill()
		m.Start()
	})
}

func oneBackend(t *testing.T, level string, lose func(m *attunetest.Memcached)) {
	run(t, scenario{
		ClusterOptions: attunetest.ClusterOptions{Level: level, Memcached: true},
		workload:       history.Mixed,
		keeps:          100,
		faults: func(s *stage) {
			// One and the same: bytes are brought back when they are read, so that by
			// turns each of three would lose what nobody has asked for.
			n := s.Nodes[1]
			for range pick(2, 12) {
				at := s.rec.Now()
				lose(n.Memcached)
				if history.Leaderless(level) {
					// A set that this backend failed has been seen, and is withdrawn.
					s.rec.Removed(at)
				}
				s.reads(n, s.values)
			}
		},
	})
}

// All backends restart empty. What nobody has any more is removed, in order: after
// a miss there is no hit without a write.
func TestRow15AllBackendsEmpty(t *testing.T) {
	onlyLong(t)
	allBackends(t, func(m *attunetest.Memcached) {
		m.Kill()
		m.Start()
	})
}

// allBackends brings a loss of all bytes about. In the history that is a delete of
// every key there was, of unknown outcome.
func allBackends(t *testing.T, lose func(m *attunetest.Memcached)) {
	run(t, scenario{
		ClusterOptions: attunetest.ClusterOptions{Level: linearizable, Memcached: true},
		workload:       history.Registers,
		lossy:          true,
		faults: func(s *stage) {
			values := s.fill(s.Nodes[0], "before", 100)
			for range 3 {
				at := s.rec.Now()
				for _, n := range s.Nodes {
					lose(n.Memcached)
				}
				s.rec.Removed(at)
				// A key is gone for all, or for none.
				for key, value := range values {
					var first history.Outcome
					for i, n := range s.Nodes {
						out := s.do(n, get(key))
						if i == 0 {
							first = out
						}
						if out.Status != first.Status || out.Status == history.Hit && out.Value != value {
							s.t.Errorf("%s is %v at %s and %v at %s", key, first, s.Nodes[0].Name, out, n.Name)
							return
						}
					}
				}
				s.progress("with empty backends")
			}
		},
	})
}

// Bytes are evicted by a backend: at one controller, then at all.
func TestRow18BackendEvicts(t *testing.T) {
	onlyLong(t)
	flush := func(m *attunetest.Memcached) {
		c := m.Dial()
		if _, err := io.WriteString(c, "flush_all\r\n"); err != nil {
			t.Error(err)
			return
		}
		if _, err := io.ReadFull(c, make([]byte, len("OK\r\n"))); err != nil {
			t.Error(err)
		}
	}
	t.Run("one", func(t *testing.T) { oneBackend(t, linearizable, flush) })
	t.Run("all", func(t *testing.T) { allBackends(t, flush) })
}
