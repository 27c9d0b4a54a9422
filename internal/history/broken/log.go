package broken

import (
	"math/rand/v2"
	"strconv"

	"github.com/attunekv/attune/internal/history"
)

// LogFault is what is wrong with a [Log].
type LogFault int

const (
	Sound       LogFault = iota
	Lagging              // but for a session's first, reads are answered by replicas behind the leader; none goes back
	Forgetful            // the same, and nobody minds the sessions
	Losing               // some acknowledged writes never happen
	Doubling             // some increments and appends happen twice
	Careless             // cas does not compare
	Misordering          // some versions are handed out late
)

// item is what a key has.
type item struct {
	present bool
	value   string
	version uint64
}

// change is an entry of the simulated log.
type change struct {
	version uint64
	key     string // empty: flush
	it      item
}

// Log is a store of several replicas that apply one log, one command at a time.
type Log struct {
	Fault LogFault // may be set before any command

	rand *rand.Rand
	log  []change
	seen map[int]int // by session: how much of the log it knows of
	last uint64
}

// NewLog returns an empty store whose dice are r.
func NewLog(f LogFault, r *rand.Rand) *Log {
	return &Log{Fault: f, rand: r, seen: make(map[int]int)}
}

// Len is how many writes there were.
func (s *Log) Len() int { return len(s.log) }

// Read returns value and version of key after the first n writes; 0 is the version
// of none.
func (s *Log) Read(n int, key string) (value string, version uint64) {
	it := s.at(n, key)
	return it.value, it.version
}

// at returns the item of key after the first n changes.
func (s *Log) at(n int, key string) item {
	for i := n - 1; i >= 0; i-- {
		if s.log[i].key == "" {
			return item{}
		}
		if s.log[i].key == key {
			return s.log[i].it
		}
	}
	return item{}
}

func (s *Log) change(key string, it item) history.Outcome {
	s.last += 1 + s.rand.Uint64N(3)
	it.version = s.last
	if s.Fault == Misordering && s.rand.IntN(10) == 0 {
		it.version -= min(it.version-1, 5)
	}
	if s.Fault == Losing && s.rand.IntN(20) == 0 {
		return history.Outcome{Status: history.Stored, Version: it.version}
	}
	s.log = append(s.log, change{it.version, key, it})
	return history.Outcome{Status: history.Stored, Version: it.version}
}

// Do executes a command of a session.
func (s *Log) Do(session int, op history.Op) history.Outcome {
	if op.Kind == history.Get {
		n := len(s.log)
		if _, met := s.seen[session]; s.Fault == Lagging && met {
			n = max(s.seen[session], n-s.rand.IntN(10))
		}
		if s.Fault == Forgetful {
			n = max(0, n-s.rand.IntN(10))
		}
		s.seen[session] = n
		if it := s.at(n, op.Key); it.present {
			return history.Outcome{Status: history.Hit, Value: it.value, Version: it.version}
		}
		return history.Outcome{Status: history.Miss}
	}
	defer func() { s.seen[session] = len(s.log) }()
	cur := s.at(len(s.log), op.Key)
	to := func(value string) history.Outcome { return s.change(op.Key, item{present: true, value: value}) }
	twice := func(f func() history.Outcome) history.Outcome {
		out := f()
		if s.Fault == Doubling && s.rand.IntN(20) == 0 {
			f()
		}
		return out
	}
	switch {
	case op.Kind == history.Set, op.Kind == history.Add && !cur.present, op.Kind == history.Replace && cur.present:
		return to(op.Value)
	case op.Kind == history.Flush:
		s.change("", item{})
		return history.Outcome{Status: history.Flushed}
	case op.Kind == history.Add, !cur.present && (op.Kind == history.Replace || op.Kind == history.Append || op.Kind == history.Prepend):
		return history.Outcome{Status: history.NotStored}
	case !cur.present:
		return history.Outcome{Status: history.NotFound}
	case op.Kind == history.CAS && cur.version != op.Compare && s.Fault != Careless:
		return history.Outcome{Status: history.Exists}
	case op.Kind == history.CAS:
		return to(op.Value)
	case op.Kind == history.Append:
		return twice(func() history.Outcome { return to(s.at(len(s.log), op.Key).value + op.Value) })
	case op.Kind == history.Prepend:
		return to(op.Value + cur.value)
	case op.Kind == history.Delete:
		s.change(op.Key, item{})
		return history.Outcome{Status: history.Deleted}
	}
	return twice(func() history.Outcome {
		n, _ := strconv.ParseUint(s.at(len(s.log), op.Key).value, 10, 64)
		if op.Kind == history.Incr {
			n += op.Delta
		} else {
			n -= min(n, op.Delta)
		}
		out := to(strconv.FormatUint(n, 10))
		out.Status, out.Number = history.Counted, n
		return out
	})
}
