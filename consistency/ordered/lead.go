package ordered

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/raft/v3"
)

// transferLook is how often Transfer looks whether it is done.
const transferLook = 10 * time.Millisecond

// Transfer makes the voter called to lead, or if that is empty the one that has most
// of the log, and returns its name when it does. Only the leader can do that. Errors
// say what to do instead; and that ctx ended: then this controller mostly leads still.
func (e *Engine) Transfer(ctx context.Context, to string) (leader string, err error) {
	var target uint64
	if err := e.do(ctx, func(c *core) (err error) {
		target, err = c.successor(to)
		if err == nil && target != c.id {
			c.raft.TransferLeader(target)
		}
		return err
	}); err != nil {
		return "", err
	}
	for {
		var lead uint64
		var name string
		if err := e.do(ctx, func(c *core) error {
			lead, name = c.soft.Lead, c.nameOf(target)
			return nil
		}); err != nil {
			return "", err
		}
		if lead == target {
			return name, nil
		}
		select {
		case <-time.After(transferLook):
		case <-ctx.Done():
			return "", fmt.Errorf("%s did not take over in time", name)
		}
	}
}

// successor is the voter that is to lead.
func (c *core) successor(to string) (uint64, error) {
	switch {
	case c.soft.Lead == raft.None:
		return 0, errNoQuorum
	case c.soft.RaftState != raft.StateLeader:
		return 0, fmt.Errorf("%s leads: ask it", c.nameOf(c.soft.Lead))
	case to == "":
		best := c.best()
		if best == 0 {
			return 0, errors.New("there is no other voter that is up to date")
		}
		return best, nil
	}
	var known bool
	var found uint64
	c.raft.WithProgress(func(id uint64, _ raft.ProgressType, pr trackerProgress) {
		if c.nameOf(id) != to {
			return
		}
		known = true
		if c.voter(id) && (pr.RecentActive || id == c.id) {
			found = id
		}
	})
	switch {
	case !known:
		return 0, fmt.Errorf("there is no member %q: see attune show", to)
	case found == 0:
		return 0, fmt.Errorf("%s cannot lead: it does not answer, or is not a voter yet", to)
	}
	return found, nil
}

// best is the other voter that has most of the log, 0 if none answers.
func (c *core) best() (best uint64) {
	var match uint64
	c.raft.WithProgress(func(id uint64, typ raft.ProgressType, pr trackerProgress) {
		if id != c.id && typ == raft.ProgressTypePeer && pr.RecentActive && pr.Match >= match && c.voter(id) {
			best, match = id, pr.Match
		}
	})
	return best
}

// LeaveForGood has Close make this controller no member any more, also one with a
// data-dir. Errors: why it must not.
func (e *Engine) LeaveForGood() error {
	ctx, cancel := context.WithTimeout(e.ctx, time.Second)
	defer cancel()
	return e.do(ctx, func(c *core) error {
		switch {
		case c.soft.Lead == raft.None:
			return errNoQuorum
		case c.voter(c.id) && len(c.conf.GetVoters()) == 1:
			return errors.New("this is the only controller that has everything: the data would be gone; to stop it, send SIGTERM")
		}
		if c.voter(c.id) {
			if err := e.quorumWithout(c); err != nil {
				return err
			}
		}
		e.forGood.Store(true)
		return nil
	})
}

// quorumWithout returns an error if those that live, but this one, would be no quorum of
// the voters that are left when it has gone: nothing could be decided any more.
func (e *Engine) quorumWithout(c *core) error {
	left, away := 0, []string(nil)
	for _, id := range c.conf.GetVoters() {
		if id == c.id {
			continue
		}
		left++
		if m, _ := e.cluster.Member(id); !m.Alive {
			away = append(away, c.nameOf(id))
		}
	}
	if left-len(away) > left/2 {
		return nil
	}
	return fmt.Errorf("%s cannot be reached, and the others would be no quorum without this one: bring it back first", strings.Join(away, ", "))
}

// do has the core's goroutine run fn.
func (e *Engine) do(ctx context.Context, fn func(c *core) error) error {
	done := make(chan error, 1)
	e.post(func() { done <- fn(e.core) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-e.ctx.Done():
		return errClosed
	}
}
