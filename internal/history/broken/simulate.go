package broken

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"github.com/attunekv/attune/internal/history"
)

// Logged is a history of clients that execute a workload on a [Log].
func Logged(w history.Workload, f LogFault, seed uint64, clients, ops int) history.History {
	s := NewLog(f, rand.New(rand.NewPCG(seed, 1)))
	h, _ := simulate(w, s.rand, seed, clients, ops, func() {}, func(e *history.Event) history.Outcome { return s.Do(e.Session, e.Op) })
	return h
}

// Gossiped is a history of clients of a gossiping store, and what was there in the end.
func Gossiped(w history.Workload, f GossipFault, seed uint64, clients, ops int) (history.History, history.Survey, *Gossip) {
	c := NewGossip(f, rand.New(rand.NewPCG(seed, 1)))
	h, now := simulate(w, c.rand, seed, clients, ops, c.step, func(e *history.Event) history.Outcome { return c.Do(int(e.Node[1]-'0'), e.Op) })
	c.Quiet()
	return h, c.Survey(h.Keys(), now), c
}

// simulate is a history of clients that have do execute their commands, and when it
// ended. Every fourth is not told versions; some commands are never answered, and some
// of those happen later. Whose command was not answered goes on as somebody else, at
// another replica. Time passes by calls of tick.
func simulate(w history.Workload, r *rand.Rand, seed uint64, clients, ops int, tick func(), do func(e *history.Event) history.Outcome) (h history.History, now int64) {
	type client struct {
		gen   *history.Gen
		id    int
		node  int
		state int // 0 idle, 1 called, 2 done
		fate  int // of the command under way; below 2 its outcome gets lost
		text  bool
		wary  bool
		e     history.Event
	}
	var (
		all      []*client
		late     []history.Event // commands of unknown outcome that happen later
		progress atomic.Int64
	)
	for i := range clients {
		all = append(all, &client{
			gen: history.NewGen(&w, i, rand.New(rand.NewPCG(seed, uint64(i+2))), &progress), id: i, node: i % replicas, text: i%4 == 3,
		})
	}
	ids := clients
	for ; len(h) < ops; now++ {
		tick()
		if len(late) > 0 && r.IntN(40) == 0 {
			do(&late[0])
			late = late[1:]
		}
		c := all[r.IntN(len(all))]
		switch c.state {
		case 0:
			c.e = history.Event{Client: c.id, Session: c.id, Node: fmt.Sprint("n", c.node), Op: c.gen.Next(c.wary), Call: now}
			c.fate = r.IntN(100)
		case 1:
			if c.fate != 0 {
				c.e.Out = do(&c.e)
			}
		case 2:
			c.e.Return = now
			if c.wary = c.fate < 2; c.wary {
				if c.fate == 0 && r.IntN(2) == 0 {
					late = append(late, c.e)
				}
				c.e.Out, c.e.Return = history.Outcome{}, history.Forever
				c.id, c.node = ids, (c.node+1)%replicas
				ids++
			} else {
				progress.Add(1)
				if c.text && c.e.Op.Kind != history.Get {
					c.e.Out.Version = 0
				}
				c.gen.Saw(c.e.Op, c.e.Out)
			}
			h = append(h, c.e)
		}
		c.state = (c.state + 1) % 3
	}
	for _, c := range all {
		if c.state != 0 {
			c.e.Out, c.e.Return = history.Outcome{}, history.Forever
			h = append(h, c.e)
		}
	}
	return h, now
}
