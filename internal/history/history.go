package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Kind is what a command does.
type Kind uint8

const (
	Get Kind = iota
	Set
	Add
	Replace
	CAS // a set under the condition that the version is Compare
	Append
	Prepend
	Incr
	Decr
	Delete
	Flush // of all keys
)

func (k Kind) String() string {
	return [...]string{"get", "set", "add", "replace", "cas", "append", "prepend", "incr", "decr", "delete", "flush_all"}[k]
}

// Op is one command. Values are made of tokens that no other command writes, so
// that a value tells who wrote it; those of counters are numbers.
type Op struct {
	Kind    Kind
	Key     string
	Value   string
	Compare uint64 // CAS
	Delta   uint64 // Incr, Decr
	TTL     int    // of what is stored, in seconds; 0 is forever
}

func (o Op) String() string {
	switch o.Kind {
	case Get, Delete:
		return fmt.Sprintf("%v %s", o.Kind, o.Key)
	case CAS:
		return fmt.Sprintf("cas %s %s if %d", o.Key, o.Value, o.Compare)
	case Incr, Decr:
		return fmt.Sprintf("%v %s by %d", o.Kind, o.Key, o.Delta)
	case Flush:
		return "flush_all"
	}
	if o.TTL != 0 {
		return fmt.Sprintf("%v %s %s for %d s", o.Kind, o.Key, o.Value, o.TTL)
	}
	return fmt.Sprintf("%v %s %s", o.Kind, o.Key, o.Value)
}

// Status is how a command ended.
type Status uint8

const (
	// Unknown is no answer, or one that says that something failed: the command
	// was executed, or will be, or never.
	Unknown Status = iota
	Hit
	Miss // of a Get
	Stored
	NotStored // the condition of Add, Replace, Append or Prepend does not hold
	Exists    // CAS: the version is another
	NotFound  // CAS, Incr, Decr, Delete: there is no item
	Deleted
	Counted
	Flushed
	// Broken is an answer that no store gives to such a command; Value has it.
	Broken
)

func (s Status) String() string {
	return [...]string{"?", "HIT", "MISS", "STORED", "NOT_STORED", "EXISTS", "NOT_FOUND", "DELETED", "COUNTED", "OK", "BROKEN"}[s]
}

// Outcome is what came back.
type Outcome struct {
	Status Status
	Value  string // Hit; the text of Broken, and what is known of an Unknown
	Number uint64 // Counted
	// Version is the cas unique of the item that was read or written; 0 if the
	// dialect does not tell.
	Version uint64
}

func (o Outcome) String() string {
	text := o.Status.String()
	switch o.Status {
	case Hit, Broken, Unknown:
		text += " " + o.Value
	case Counted:
		text += fmt.Sprintf(" %d", o.Number)
	}
	if o.Version != 0 {
		text += fmt.Sprintf(" @%d", o.Version)
	}
	return text
}

// Forever is when an Unknown returns.
const Forever = math.MaxInt64

// Event is one command of one client.
type Event struct {
	// Client is who asked. A client does one thing at a time; one that does not
	// know what became of its command is never heard of again.
	Client int
	// Session is the connection, unique in the history.
	Session int
	Node    string // who was asked
	Op      Op
	Out     Outcome
	// Call and Return are when, in nanoseconds of one clock that never steps.
	Call, Return int64
}

func (e Event) String() string {
	end := "          -"
	if e.Return != Forever {
		end = fmt.Sprintf("%11.3f", float64(e.Return)/1e6)
	}
	return fmt.Sprintf("%11.3f to %s ms, client %d at %s: %v -> %v", float64(e.Call)/1e6, end, e.Client, e.Node, e.Op, e.Out)
}

// History is what happened, in any order.
type History []Event

// byCall returns h in the order in which the commands were called.
func (h History) byCall() History {
	sorted := slices.Clone(h)
	slices.SortStableFunc(sorted, func(a, b Event) int { return cmp.Compare(a.Call, b.Call) })
	return sorted
}

// perKey splits h, in the order of calls. A Flush is in the history of every key.
func (h History) perKey() map[string]History {
	keys := make(map[string]History)
	for _, e := range h {
		if e.Op.Kind != Flush {
			keys[e.Op.Key] = nil
		}
	}
	for _, e := range h.byCall() {
		if e.Op.Kind != Flush {
			keys[e.Op.Key] = append(keys[e.Op.Key], e)
			continue
		}
		for key := range keys {
			keys[key] = append(keys[key], e)
		}
	}
	return keys
}

// Answered counts the events whose outcome is known.
func (h History) Answered() (n int) {
	for _, e := range h {
		if e.Out.Status != Unknown {
			n++
		}
	}
	return n
}

// Gap returns the longest time within [from, to] in which no command that keep
// accepts was answered, and when it began: how long the store was not available.
// Times are as in Event.
func (h History) Gap(from, to int64, keep func(Event) bool) (longest time.Duration, at int64) {
	var ends []int64
	for _, e := range h {
		if e.Out.Status != Unknown && e.Out.Status != Broken && e.Return >= from && e.Return <= to && keep(e) {
			ends = append(ends, e.Return)
		}
	}
	slices.Sort(ends)
	last := from
	for _, end := range append(ends, to) {
		if gap := time.Duration(end - last); gap > longest {
			longest, at = gap, last
		}
		last = end
	}
	return longest, at
}

// sane returns an error for an answer that no store gives.
func sane(h History) error {
	for _, e := range h {
		if e.Out.Status == Broken {
			return fmt.Errorf("no answer to give: %v", e)
		}
	}
	return nil
}

// writes reports whether the event may have changed the item of its key.
func (e *Event) writes() bool {
	switch e.Out.Status {
	case Unknown:
		return e.Op.Kind != Get
	case Stored, Deleted, Counted, Flushed:
		return true
	}
	return false
}

// tokens returns the pieces of a value that commands wrote: each ends with a
// semicolon. The numbers of counters are none.
func tokens(value string) (pieces []string) {
	for piece := range strings.SplitAfterSeq(value, ";") {
		if strings.HasSuffix(piece, ";") {
			pieces = append(pieces, piece)
		}
	}
	return pieces
}

// story tells events, the last at most of them.
func story(h History, most int) string {
	var b strings.Builder
	if len(h) > most {
		fmt.Fprintf(&b, "... %d before\n", len(h)-most)
		h = h[len(h)-most:]
	}
	for _, e := range h {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}
