package gossip

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/attunekv/attune"
)

// TestOneWinnerFromTheFirstMoment: three that are new answer clients as soon as each of
// them is ready, and a lock has one winner all the same, and no increment is lost.
func TestOneWinnerFromTheFirstMoment(t *testing.T) {
	t.Parallel()
	const keys, rounds = 100, 4
	for range rounds {
		bothSites(t, func(s *site) {
			s.ready = func() {
				for i := range keys {
					incr := s.op(attune.Incr, fmt.Sprint("n", i), "")
					incr.Mode, incr.Initial = attune.Vivify, 1
					for j, res := range s.do(s.op(attune.Add, fmt.Sprint("lock", i), s.o.Node), incr) {
						switch {
						case j == 0 && res.Status == attune.Stored:
							s.won = append(s.won, i)
						case j == 0 && res.Status == attune.NotStored, j == 1 && res.Status == attune.Counted:
						default:
							s.t.Errorf("%s: op %d of key %d: %+v", s.o.Node, j, i, res)
						}
					}
				}
			}
		}, func(t *testing.T, g *sites) {
			winner := make(map[int]string)
			for _, s := range g.list {
				for _, i := range s.won {
					if winner[i] != "" {
						t.Errorf("lock %d was taken by %s and by %s", i, winner[i], s.o.Node)
					}
					winner[i] = s.o.Node
				}
			}
			for i := range keys {
				g.all(fmt.Sprint("n", i), fmt.Sprint(len(g.list)))
				g.all(fmt.Sprint("lock", i), winner[i])
			}
		})
	}
}

// TestReadyWithoutAnAnswer: one whose others never agree with it serves all the same, and
// so does one that finds nobody.
func TestReadyWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	g := openSites(t, 2, durable)
	a, b := g.list[0], g.list[1]
	a.must(attune.Stored, a.op(attune.Set, "k", "v")) // it is not new then
	b.cluster.HandleCall(callHomes, func(ctx context.Context, _ uint64, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	a.close()
	began := time.Now()
	g.start(a)
	if took := time.Since(began); took < knownAfter || took > knownAfter+reunion+2*time.Second {
		t.Errorf("with one that does not answer it took %v", took)
	}
	g.stop(a, b)
	began = time.Now()
	g.start(a)
	if took := time.Since(began); took > reunion+2*time.Second {
		t.Errorf("without the other it took %v", took)
	}
}
