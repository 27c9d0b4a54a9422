package gossip

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
)

var errAcks = errors.New("the change took effect here, and not enough other controllers confirmed it in time; see write-acks")

var errSlowDisk = errors.New("the change took effect here, and was not written to the data directory in time: the disk is slow; see op-timeout")

// acks are the Calls that wait until other members have what they wrote.
type acks struct {
	want  atomic.Int64 // members that must have a change, this one included; 0 and 1 are this one
	queue []ack
	ended bool // by close: nobody would answer
}

// ack waits until all changes of this origin up to seq are where they must be.
type ack struct {
	seq  uint64
	call *attune.Call
}

// waiting reports whether somebody waits to hear how far the others are.
func (a *acks) waiting() bool { return len(a.queue) > 0 }

// await has c answered when enough members have what was written here so far. It
// reports false if they have already, or none need to.
func (k *core) await(c *attune.Call) bool {
	if k.acks.want.Load() <= 1 && !k.durable() {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.confirmed() >= k.own.seq {
		return false
	}
	if k.acks.ended {
		refuse(c, errClosed)
		return false
	}
	k.acks.queue = append(k.acks.queue, ack{k.own.seq, c})
	k.world.stir()
	return true
}

// confirmed is up to where enough members have the changes of this origin, and the
// journal does.
func (k *core) confirmed() uint64 {
	want := int(k.acks.want.Load())
	if want <= 1 {
		return k.own.told
	}
	var seqs []uint64
	for _, p := range k.peers {
		if p.alive {
			seqs = append(seqs, p.vv[k.id].seq)
		}
	}
	n := min(want-1, len(seqs))
	if n < want-1 && want != All {
		return 0 // there are not as many
	}
	seq := k.own.told
	for range n { // the n-th largest
		best := -1
		for i, s := range seqs {
			if best < 0 || s > seqs[best] {
				best = i
			}
		}
		seq, seqs[best] = seqs[best], 0
	}
	return seq
}

// heard answers those who have waited for what a peer just told.
func (a *acks) heard(k *core) {
	if len(a.queue) == 0 {
		return
	}
	seq := k.confirmed()
	a.note(k)
	n := 0
	for n < len(a.queue) && a.queue[n].seq <= seq {
		c := a.queue[n].call
		if c.Trace != nil {
			c.Trace.Ended("acks", "those have it that must")
		}
		c.Done()
		n++
	}
	a.queue = slices.Delete(a.queue, 0, n)
}

// note notes who has the changes of Calls that are traced.
func (a *acks) note(k *core) {
	for _, w := range a.queue {
		t := w.call.Trace
		if t == nil {
			continue
		}
		if k.durable() && k.own.told >= w.seq {
			t.Ended("journal", "in the journal here")
		}
		for _, p := range k.near {
			if p.vv[k.id].seq >= w.seq {
				t.Note(p.name + " has it")
			}
		}
	}
}

// expire fails those whose time is up.
func (a *acks) expire(now time.Time) {
	err := errAcks
	if a.want.Load() <= 1 {
		err = errSlowDisk
	}
	kept := a.queue[:0]
	for _, w := range a.queue {
		if d := w.call.Deadline; !d.IsZero() && !now.Before(d) {
			w.fail(err)
		} else {
			kept = append(kept, w)
		}
	}
	clear(a.queue[len(kept):])
	a.queue = kept
}

// close fails all, and those that come later.
func (a *acks) close(k *core) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, w := range a.queue {
		w.fail(errClosed)
	}
	a.queue, a.ended = nil, true
}

func (w *ack) fail(err error) {
	refuse(w.call, err)
	w.call.Done()
}

// refuse says SERVER_ERROR of every change that was made.
func refuse(c *attune.Call, err error) {
	for i := range c.Res {
		if res := &c.Res[i]; res.Status.Changed() {
			*res = attune.Result{Status: attune.Failed, Err: err}
		}
	}
}
