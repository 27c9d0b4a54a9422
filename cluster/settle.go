package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// promiseFor is how long a node supports nobody else as founder, or itself.
	promiseFor     = 5 * time.Second
	promiseTimeout = 2 * time.Second
	settleEvery    = 250 * time.Millisecond

	// The calls of this package.
	callPromise = 1
	callLeave   = 2
)

// boot is this node's part in founding a cluster.
type boot struct {
	mu       sync.Mutex
	founding bool      // it gathers promises, or has them all
	to       uint64    // who was promised
	until    time.Time // that lasts
}

// begin starts founding, unless another node was promised support.
func (b *boot) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.founding = !time.Now().Before(b.until)
	return b.founding
}

func (b *boot) giveUp() {
	b.mu.Lock()
	b.founding = false
	b.mu.Unlock()
}

// belongs ends founding: from now on the cluster itself is the reason to refuse.
func (b *boot) belongs() { b.giveUp() }

// promise answers a founder. An empty answer is the promise, a text the reason
// against it.
func (c *Cluster) promise(_ context.Context, from uint64, _ []byte) ([]byte, error) {
	why := c.outlook().member
	c.boot.mu.Lock()
	defer c.boot.mu.Unlock()
	switch now := time.Now(); {
	case c.hash.Load() != 0:
		return []byte(c.o.Name + " belongs to a cluster"), nil
	case why != "":
		return fmt.Appendf(nil, "%s knows of a cluster, through %s", c.o.Name, why), nil
	case c.boot.founding:
		return []byte(c.o.Name + " is founding one itself"), nil
	case c.boot.to != from && now.Before(c.boot.until):
		return fmt.Appendf(nil, "%s has promised to support %016x", c.o.Name, c.boot.to), nil
	default:
		c.boot.to, c.boot.until = from, now.Add(promiseFor)
		return nil, nil
	}
}

// outlook is what the members at present mean for founding a cluster.
type outlook struct {
	member string   // a live one that belongs to a cluster, or ""
	found  bool     // this node may found one if all others promise
	others []Member // who has to promise
	text   string   // what is being waited for
}

func (c *Cluster) outlook() outlook {
	var names []string
	var free []Member // live and without cluster, by name
	for _, m := range c.Members() {
		switch {
		case !m.Alive:
		case m.Cluster != 0:
			return outlook{member: m.Name}
		default:
			free, names = append(free, m), append(names, m.Name)
		}
	}
	known := strings.Join(names, ", ")
	switch {
	case len(free) < c.o.Expect:
		return outlook{text: fmt.Sprintf("%d of %d controllers found each other: %s", len(free), c.o.Expect, known)}
	case c.seeds.awaited():
		return outlook{text: fmt.Sprintf("no node named in --join (%s) has answered yet", strings.Join(c.o.Join, ", "))}
	case !free[0].Self:
		return outlook{text: fmt.Sprintf("%s is to found the cluster of %s", free[0].Name, known)}
	}
	o := outlook{found: true, others: free[1:c.o.Expect], text: "about to found a cluster"}
	if len(o.others) > 0 {
		o.text = fmt.Sprintf("asking %s to support a new cluster", strings.Join(names[1:c.o.Expect], ", "))
	}
	return o
}

// Waiting says in words what Settle waits for, "" if for nothing.
func (c *Cluster) Waiting() string { return c.outlook().text }

// Settle waits until it is clear where this node belongs. With found false, some
// live member belongs to a cluster: ask it for admission. With found true, there
// is none, and this node is the one to found it, by calling Belong: it has the
// lowest name of at least Expect live nodes, has reached one of those named in
// Join (unless that is only itself), and enough of the others to make it Expect
// have promised to support nobody else for some seconds.
//
// It may be called again, if admission or founding came to nothing. The error is
// the cause of ctx's end, or [ErrClosed].
func (c *Cluster) Settle(ctx context.Context) (found bool, err error) {
	c.boot.giveUp() // what an earlier call began
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		changed := c.members.change()
		o := c.outlook()
		if o.member != "" {
			return false, nil
		}
		if o.found && c.gather(ctx, o.others) {
			return true, nil
		}
		if o.found {
			changed = nil // asked everybody just now: not again at once
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-c.ctx.Done():
			return false, ErrClosed
		}
	}
}

// gather asks others for their support, and reports whether all promised it. Then
// this node goes on refusing its own until Belong or the next Settle.
func (c *Cluster) gather(ctx context.Context, others []Member) bool {
	if !c.boot.begin() {
		return false
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, promiseTimeout)
	defer cancel()
	answers := make([]string, len(others))
	var wg sync.WaitGroup
	for i, m := range others {
		wg.Go(func() {
			no, err := c.call(ctx, m.ID, callPromise, nil)
			if err != nil {
				no = []byte(m.Name + ": " + err.Error())
			}
			answers[i] = string(no)
		})
	}
	wg.Wait()
	answers = slices.DeleteFunc(answers, func(no string) bool { return no == "" })
	if len(answers) == 0 && time.Since(began) < promiseFor && c.outlook().found {
		return true
	}
	c.boot.giveUp()
	if len(answers) > 0 {
		c.log.Debug("no support for a new cluster yet", zap.Strings("why", answers))
	}
	return false
}
