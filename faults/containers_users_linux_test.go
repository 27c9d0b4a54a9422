package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/attunekv/attune/client"
	"github.com/attunekv/attune/internal/history"
)

// users are programs with the client of this repository. Each prefers another
// controller, and knows them all.
type users struct {
	rec   *history.Recorder // their clock
	stopc chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex
	all    history.History // guarded by mu, as is what follows
	sets   history.History // of keys that are set once
	failed []failure
	count  []int // answers, by user
	nextID int   // of a client of the history
}

const userCount = 9

func startUsers(t *testing.T, f *fleet) *users {
	u := &users{rec: new(history.Recorder), stopc: make(chan struct{}), count: make([]int, userCount)}
	u.rec.Begin()
	names := make(map[string]string)
	var addrs []string
	for _, n := range f.Nodes {
		names[n.Listen] = n.Name
		addrs = append(addrs, n.Listen)
	}
	for i := range userCount {
		turned := append(slices.Clone(addrs[i%3:]), addrs[:i%3]...)
		u.wg.Go(func() { u.use(i, client.New(turned...), names) })
	}
	t.Cleanup(func() { u.stop() })
	return u
}

// use executes commands, one after the other, until the end.
func (u *users) use(i int, c *client.Client, names map[string]string) {
	defer c.Close()
	r := rand.New(rand.NewPCG(uint64(i), 1))
	id, session, at := u.newID(), u.newID(), c.Controller()
	for n := 1; ; n++ {
		select {
		case <-u.stopc:
			return
		case <-time.After(time.Duration(r.IntN(4)) * time.Millisecond):
		}
		// A key of few commands is searched fast.
		op := history.Op{Key: fmt.Sprintf("r-%d-%d", u.now()/int64(500*time.Millisecond), r.IntN(4))}
		once := false
		switch d := r.IntN(20); {
		case d < 8:
		case d < 9:
			op.Kind = history.Delete
		case d < 11:
			op.Key, once = fmt.Sprintf("once-%d-%d", i, n), true
			fallthrough
		default:
			op.Kind, op.Value = history.Set, fmt.Sprintf("%d.%d;", i, n)
		}
		began := time.Now()
		e := history.Event{Op: op, Call: u.now()}
		out, err := carryOut(c, op)
		e.Return, e.Out = u.now(), out
		if now := c.Controller(); now != at {
			session, at = u.newID(), now
		}
		e.Client, e.Session, e.Node = id, session, names[at]
		if err != nil {
			e.Return = history.Forever
			id, session = u.newID(), u.newID()
		}
		u.mu.Lock()
		if once {
			u.sets = append(u.sets, e)
		} else {
			u.all = append(u.all, e)
		}
		if err != nil {
			u.failed = append(u.failed, failure{op: op, client: i, err: err, unknown: mayHaveHappened(err), began: began, took: time.Since(began)})
		} else {
			u.count[i]++
		}
		u.mu.Unlock()
	}
}

// carryOut executes one command. An error is no answer, or SERVER_ERROR.
func carryOut(c *client.Client, op history.Op) (history.Outcome, error) {
	switch op.Kind {
	case history.Get:
		item, err := c.Get(op.Key)
		if err == nil {
			return history.Outcome{Status: history.Hit, Value: string(item.Value), Version: item.CasID}, nil
		}
		if errors.Is(err, memcache.ErrCacheMiss) {
			return history.Outcome{Status: history.Miss}, nil
		}
		return history.Outcome{Value: err.Error()}, err
	case history.Delete:
		err := c.Delete(op.Key)
		if err == nil {
			return history.Outcome{Status: history.Deleted}, nil
		}
		if errors.Is(err, memcache.ErrCacheMiss) {
			return history.Outcome{Status: history.NotFound}, nil
		}
		return history.Outcome{Value: err.Error()}, err
	default:
		err := c.Set(&memcache.Item{Key: op.Key, Value: []byte(op.Value)})
		if err == nil {
			return history.Outcome{Status: history.Stored}, nil
		}
		return history.Outcome{Value: err.Error()}, err
	}
}

// mayHaveHappened says of a command that failed whether it may have been executed.
func mayHaveHappened(err error) bool {
	var lost *client.LostError
	if errors.As(err, &lost) {
		return true
	}
	line, _ := client.ErrorLine(err)
	return strings.Contains(line, "unknown") || strings.Contains(line, "stopping")
}

func (u *users) newID() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.nextID++
	return u.nextID
}

func (u *users) now() int64 { return u.rec.Now() }

// answers are how many each user has had.
func (u *users) answers() []int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.count)
}

// since counts the commands that ended after from, and returns those that failed.
func (u *users) since(from int64) (asked int, failed []failure) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, h := range []history.History{u.all, u.sets} {
		for _, e := range h {
			if e.Return >= from {
				asked++
			}
		}
	}
	for _, x := range u.failed {
		if !x.began.Add(x.took).Before(u.rec.Time(from)) {
			failed = append(failed, x)
		}
	}
	return asked, failed
}

// stop ends the users and returns what they saw: everything but the keys that are
// set once, and those.
func (u *users) stop() (all, once history.History) {
	select {
	case <-u.stopc:
	default:
		close(u.stopc)
	}
	u.wg.Wait()
	return u.all, u.sets
}
