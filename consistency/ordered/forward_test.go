package ordered

import (
	"bytes"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency/codec"
)

// narrow is a world that has room for so many bytes on the way to each peer.
type narrow struct {
	world
	room int
	sent map[uint64][][]byte
}

func (n *narrow) send(to uint64, _ cluster.Class, _ byte, body []byte) bool {
	waiting := 0
	for _, b := range n.sent[to] {
		waiting += len(b)
	}
	if waiting > 0 && waiting+len(body) > n.room {
		return false
	}
	n.sent[to] = append(n.sent[to], body)
	return true
}

// Answers of one turn may be more than fits a frame, or the way to who asked: none is
// lost, none comes twice, and what has no room goes later, as long as somebody waits.
func TestLargeAnswersGoInPieces(t *testing.T) {
	value := bytes.Repeat([]byte("v"), 400<<10)
	w := &narrow{room: 8 << 20, sent: make(map[uint64][][]byte)}
	c := &core{world: w}
	const follower, other, n = 2, 3, 100
	for id := range uint64(n) {
		to := uint64(follower)
		if id%10 == 0 {
			to = other
		}
		c.answer(&request{from: to, id: id, res: []attune.Result{{Status: attune.Hit, Item: attune.Item{Value: value, Size: len(value)}}}}, 7, outcomeDone)
	}
	seen := make(map[uint64]bool)
	for range 20 {
		c.flushOut()
		if c.lateBytes > lateBytes {
			t.Fatalf("%d bytes wait", c.lateBytes)
		}
		for to, frames := range w.sent {
			for _, body := range frames {
				if len(body) > answerBytes+len(value)+100 {
					t.Errorf("a frame of %d bytes", len(body))
				}
				for len(body) > 0 {
					id, outcome, _, block, rest, ok := cut(body, 8)
					res := make([]attune.Result, 1)
					if !ok || outcome != outcomeDone || codec.DecodeResults(block, res) != nil || !bytes.Equal(res[0].Item.Value, value) {
						t.Fatal("an answer that cannot be read")
					}
					if seen[id] || (to == other) != (id%10 == 0) {
						t.Errorf("answer %d came twice, or to another", id)
					}
					seen[id], body = true, rest
				}
			}
		}
		clear(w.sent) // they have arrived
	}
	if len(seen) != n || len(c.late) != 0 || c.lateBytes != 0 {
		t.Errorf("%d of %d answers came, %d frames of %d bytes wait", len(seen), n, len(c.late), c.lateBytes)
	}

	// Nobody takes them: they are few, and then none.
	w.room = 0
	for id := range uint64(n * 3) {
		w.sent[follower] = [][]byte{{0}}
		c.answer(&request{from: follower, id: n + id, res: []attune.Result{{Status: attune.Hit, Item: attune.Item{Value: value, Size: len(value)}}}}, 7, outcomeDone)
	}
	c.flushOut()
	if c.lateBytes == 0 || c.lateBytes > lateBytes {
		t.Errorf("%d bytes wait", c.lateBytes)
	}
	c.now += latePatience
	if c.flushOut(); len(c.late) != 0 || c.lateBytes != 0 {
		t.Errorf("%d bytes still wait", c.lateBytes)
	}
}
