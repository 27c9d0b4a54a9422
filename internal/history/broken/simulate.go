package broken

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"github.com/attunekv/attune/internal/history"
)

// Logged is a history of clients that execute a workload on a [Log]. Some commands
// are never answered, and some of those happen later.
func Logged(w history.Workload, f LogFault, seed uint64, clients, ops int) history.History {
	s := NewLog(f, rand.New(rand.NewPCG(seed, 1)))
	var progress atomic.Int64
	type client struct {
		gen   *history.Gen
		id    int
		state int // 0 idle, 1 called, 2 done
		fate  int // of the command under way; below 3 its outcome gets lost
		text  bool
		e     history.Event
	}
	var (
		all  []*client
		h    history.History
		late []history.Event // commands of unknown outcome that happen later
		ids  int
	)
	for i := range clients {
		ids++
		all = append(all, &client{gen: history.NewGen(&w, i, rand.New(rand.NewPCG(seed, uint64(i+2))), &progress), id: ids, text: i%4 == 3})
	}
	for now := int64(0); len(h) < ops; now++ {
		if len(late) > 0 && s.rand.IntN(40) == 0 {
			s.Do(-1, late[0].Op)
			late = late[1:]
		}
		c := all[s.rand.IntN(len(all))]
		switch c.state {
		case 0:
			c.e = history.Event{Client: c.id, Session: c.id, Node: "sim", Op: c.gen.Next(false), Call: now}
			c.fate = s.rand.IntN(100)
		case 1:
			if c.fate != 0 {
				c.e.Out = s.Do(c.id, c.e.Op)
			}
		case 2:
			c.e.Return = now
			if c.fate < 3 {
				if c.fate == 0 && s.rand.IntN(2) == 0 {
					late = append(late, c.e)
				}
				c.e.Out, c.e.Return = history.Outcome{}, history.Forever
				ids++
				c.id = ids
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
	return h
}

// Gossiped is a history of clients of a gossiping store, and what was there in the
// end. Every fourth is not told versions; some commands are never answered, and
// some of those happen later.
func Gossiped(w history.Workload, f GossipFault, seed uint64, clients, ops int) (history.History, history.Survey, *Gossip) {
	c := NewGossip(f, rand.New(rand.NewPCG(seed, 1)))
	var progress atomic.Int64
	type client struct {
		number int
		gen    *history.Gen
		id     int
		node   int
		state  int // 0 idle, 1 called, 2 done
		fate   int // of the command under way; below 2 its outcome gets lost
		wary   bool
		e      history.Event
	}
	var (
		all  []*client
		h    history.History
		late []*history.Event
	)
	ids := clients
	for i := range clients {
		all = append(all, &client{number: i, gen: history.NewGen(&w, i, rand.New(rand.NewPCG(seed, uint64(i+2))), &progress), id: i, node: i % replicas})
	}
	now := int64(0)
	for ; len(h) < ops; now++ {
		c.step()
		if len(late) > 0 && c.rand.IntN(40) == 0 {
			c.Do(int(late[0].Node[1]-'0'), late[0].Op)
			late = late[1:]
		}
		cl := all[c.rand.IntN(len(all))]
		switch cl.state {
		case 0:
			cl.e = history.Event{Client: cl.id, Session: cl.id, Node: fmt.Sprint("n", cl.node), Op: cl.gen.Next(cl.wary), Call: now}
			cl.fate = c.rand.IntN(100)
		case 1:
			if cl.fate != 0 {
				cl.e.Out = c.Do(cl.node, cl.e.Op)
			}
		case 2:
			cl.e.Return = now
			if cl.fate < 2 {
				cl.e.Out, cl.e.Return = history.Outcome{}, history.Forever
				if cl.fate == 0 && c.rand.IntN(2) == 0 {
					e := cl.e
					late = append(late, &e)
				}
				ids++
				cl.id, cl.node, cl.wary = ids, (cl.node+1)%replicas, true
			} else {
				cl.wary = false
				progress.Add(1)
				if cl.number%4 == 3 && cl.e.Op.Kind != history.Get {
					cl.e.Out.Version = 0
				}
				cl.gen.Saw(cl.e.Op, cl.e.Out)
			}
			h = append(h, cl.e)
		}
		cl.state = (cl.state + 1) % 3
	}
	for _, cl := range all {
		if cl.state != 0 {
			cl.e.Out, cl.e.Return = history.Outcome{}, history.Forever
			h = append(h, cl.e)
		}
	}
	c.Quiet()
	return h, c.Survey(h.Keys(), now), c
}
