package history

import (
	"fmt"
	"time"
)

// ExpiringTTL is how long the items of [Expiring] live, in seconds. It is the same for
// all of them: so the newer of two lives longer.
const ExpiringTTL = 2

// ExpiryRules say how exact expiry must be.
type ExpiryRules struct {
	// Slack is how much earlier or later than asked an item may go.
	Slack time.Duration
	// Excused says of a time that clocks, or who is to tell them, may have been
	// broken then; nil is never.
	Excused func(from, to int64) bool
	// Shared says that what one connection was told, all others know.
	Shared bool
	// Late is as in [Rules].
	Late time.Duration
}

// Expired returns an error if an item is shown for longer than it was to live, or is
// gone before. It is for the workload Expiring, in which nothing else removes items; a
// write of unknown outcome has no time, so what it wrote is not judged.
func Expired(h History, r ExpiryRules) error {
	if err := sane(h); err != nil {
		return err
	}
	excused := func(from, to int64) bool { return r.Excused != nil && r.Excused(from, to) }
	type place struct {
		session int
		key     string
	}
	writers := make(map[string]Event) // by token
	for _, e := range h {
		if e.Op.Kind == Add {
			writers[e.Op.Value] = e
		}
	}
	known := make(map[place]Event) // who wrote the newest that is known there
	slack := int64(r.Slack)
	var due []Event // answered, not seen to have returned yet
	learn := func(before int64) {
		rest := due[:0]
		for _, e := range due {
			if e.Return >= before {
				rest = append(rest, e)
				continue
			}
			w, at := writers[e.Op.Value], place{e.Session, e.Op.Key}
			if e.Op.Kind == Get {
				w = writers[e.Out.Value]
			}
			if r.Shared {
				at.session = 0
			}
			if old, ok := known[at]; !ok || w.Call > old.Call {
				known[at] = w
			}
		}
		due = rest
	}
	for _, e := range h.byCall() {
		learn(e.Call)
		at := place{e.Session, e.Op.Key}
		if r.Shared {
			at.session = 0
		}
		switch e.Out.Status {
		case Hit:
			w, ok := writers[e.Out.Value]
			if !ok {
				return fmt.Errorf("%q was never written to %s, but read: %v", e.Out.Value, e.Op.Key, e)
			}
			if w.Out.Status == Unknown {
				continue
			}
			end := w.Return + int64(w.Op.TTL)*1e9
			if e.Call > end+slack && !excused(w.Call, e.Return) {
				return fmt.Errorf("shown %.3f s after it was to expire:\n%v\n%v", float64(e.Call-end)/1e9, w, e)
			}
			due = append(due, e)
		case Stored:
			if late := (Rules{Late: r.Late}); !late.late(&e) {
				due = append(due, e)
			}
			fallthrough // there was nothing
		case Miss:
			w, ok := known[at]
			end := w.Call + int64(w.Op.TTL)*1e9
			if ok && e.Return < end-slack && !excused(w.Call, e.Return) {
				return fmt.Errorf("gone %.3f s before it was to expire:\n%v\n%v", float64(end-e.Return)/1e9, w, e)
			}
		}
	}
	return nil
}
