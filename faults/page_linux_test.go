package faults

import (
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

// A controller is cut off from the others, but not from who looks: the page of one of
// these shows it as failed, its own that they are, and that it serves nobody.
func TestPageOfAPartition(t *testing.T) {
	if screenshots == "" {
		onlyLong(t)
	}
	if !ownNetwork(t, "ATTUNE_TEST_BINARY="+attunetest.Binary(t)) {
		return
	}
	b := newBrowser(t)
	w := newWires(t, 3)
	c := attunetest.StartCluster(t, attunetest.ClusterOptions{
		Level: linearizable,
		Host:  func(i int) (string, []string) { return w.addr(i), w.enter(i) },
	})
	load(t, c.Nodes)
	b.open(c.Nodes[0].Admin)
	b.shows(`document.getElementById('summary').textContent === '✓ All 3 controllers are ready.'`)
	for i := range 2 {
		w.cut(i, 2)
		w.cut(2, i)
	}
	b.shows(state("n3", "failed"))
	b.shows(`document.querySelectorAll('#map .link.cut').length === 2`)
	if screenshots != "" {
		time.Sleep(20 * time.Second)
	}
	b.picture("page-partition.png")

	// Its own page tells the other half of it.
	b.open(c.Nodes[2].Admin)
	b.shows(state("n1", "failed"))
	b.shows(state("n3", "not ready"))
	for i := range 2 {
		w.heal(i, 2)
		w.heal(2, i)
	}
	b.shows(`document.getElementById('summary').textContent === '✓ All 3 controllers are ready.'`)
	b.clean()
}
