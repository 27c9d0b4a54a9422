package ordered

import (
	"cmp"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"

	"github.com/attunekv/attune"
)

// maxReigns is how many terms are remembered. Who asks wants to know of the newest.
const maxReigns = 64

// reigns says who decided what. Entries are in the order of their terms, versions in
// that of entries, and a term has one leader: so the newest version before a term's
// first entry tells the versions of that term from all before. Who leads when somebody
// asks may be another one.
type reigns struct {
	mu  sync.Mutex // guards all: the core writes it, whoever watches reads it
	all []reign    // by term
}

// reign is a term.
type reign struct {
	term   uint64
	leader string         // "" if this member has not heard who it was
	begun  bool           // an entry of it was applied here
	after  attune.Version // its versions are newer
}

// of returns the reign of a term, which is entered if it is not there. It is called
// under mu.
func (r *reigns) of(term uint64) *reign {
	i, found := slices.BinarySearchFunc(r.all, term, func(x reign, term uint64) int { return cmp.Compare(x.term, term) })
	if !found {
		if len(r.all) == maxReigns && i == 0 {
			return new(reign) // older than all there is room for
		}
		if len(r.all) == maxReigns {
			r.all, i = slices.Delete(r.all, 0, 1), i-1
		}
		r.all = slices.Insert(r.all, i, reign{term: term})
	}
	return &r.all[i]
}

// led notes who leads in a term.
func (r *reigns) led(term uint64, leader string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of(term).leader = leader
}

// begin notes that the first entry of a term comes after a version.
func (r *reigns) begin(term uint64, after attune.Version) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.of(term); !x.begun {
		x.begun, x.after = true, after
	}
}

// origin is who issued a version, "" if that is not known.
func (r *reigns) origin(v attune.Version) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range slices.Backward(r.all) {
		if x.begun && v > x.after {
			return x.leader
		}
	}
	return ""
}

// Origin is the name of the controller that led when a version was issued; "" if this
// one has not seen it lead, as of what it reads from the log of a time when it was away.
func (e *Engine) Origin(v attune.Version) string { return e.core.reigns.origin(v) }

// noteLeader notes who leads now, if that is known.
func (c *core) noteLeader() {
	if name := c.st.members[c.soft.Lead]; c.soft.Lead != raft.None && name != "" {
		c.noted = c.raft.BasicStatus().GetTerm()
		c.reigns.led(c.noted, name)
	}
}

// noteReign notes that an entry of a term is about to be applied.
func (c *core) noteReign(term uint64) {
	if term != c.reign {
		c.reign = term
		c.reigns.begin(term, c.st.version)
		c.noteLeader() // whose name may not have been known before
	}
}
