package ordered

import (
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency/codec"
)

// leadership is what a leader knows beyond the replica: what it has proposed and
// not applied yet. All of it is void when it leads no more.
type leadership struct {
	// overlay is the newest pending change of each key.
	overlay map[attune.KeyHash]pending
	promises

	issued   attune.Version // the newest version given out
	inflight []*proposal    // oldest first
	number   uint64         // of the newest proposal
	proposed int64          // pace when the newest was made
	evicting int64          // bytes of evictions proposed and not applied

	batch batch
}

// pending is a change that is proposed and not applied.
type pending struct {
	item attune.Item // without Value
	// Its bytes are those of record rec of entry data, if data is not nil.
	data []byte
	rec  int
}

// proposal is one log entry on its way.
type proposal struct {
	number      uint64
	index, term uint64 // 0 until Raft has given it a place
	data        []byte
	waiters     []*request // answered when it is applied
	noted       bool       // in their traces, that it is in the log here
	evicting    int64
}

// promises are what a leader goes by though it is not applied yet.
type promises struct {
	// floor is the version of a flush_all that is pending; 0 is none.
	floor attune.Version
	// flushAt is state.flushAt as it will be, if hasFlushAt.
	flushAt    int64
	hasFlushAt bool
	formed     bool
}

func (l *leadership) init() {
	l.overlay = make(map[attune.KeyHash]pending)
	l.batch.at = make(map[attune.KeyHash]int)
	l.batch.read = make([]byte, 0, 4<<10)
}

// lost forgets what was decided on what may never be.
func (l *leadership) lost() {
	clear(l.overlay)
	l.promises, l.evicting = promises{}, 0
}

// leaderTime is the log clock as the leader tells it.
func (c *core) leaderTime() int64 { return max(c.pace.now(c.mono()), c.st.time) }

// nextVersion issues a version above every other.
func (c *core) nextVersion(now int64) attune.Version {
	v := max(attune.Version(max(now-epoch, 0))<<versionShift, c.lead.issued+1, c.st.version+1)
	c.lead.issued = v
	return v
}

// propose makes entries of the batch and gives them to Raft, all at once.
func (c *core) propose() {
	b := &c.lead.batch
	l := &c.lead
	b.entries = b.entries[:0]
	first := len(l.inflight)
	where := make([]struct{ entry, rec int }, len(b.changes))
	begun := false
	begin := func() {
		l.number++
		b.builder.Begin(codec.Header{Batch: l.number, Time: b.now, Base: b.base})
		begun = true
	}
	end := func() {
		p := &proposal{number: l.number, data: b.builder.Bytes()}
		l.inflight = append(l.inflight, p)
		b.entries = append(b.entries, &pb.Entry{Data: p.data})
		begun = false
	}
	marks := b.marks
	for i := 0; i <= len(b.changes); i++ {
		if !begun {
			begin()
		}
		for len(marks) > 0 && marks[0].before == i {
			b.builder.Mark(marks[0].kind, marks[0].v, marks[0].at)
			marks = marks[1:]
		}
		if i == len(b.changes) {
			break
		}
		where[i] = struct{ entry, rec int }{len(l.inflight), b.builder.Count()}
		b.builder.Change(&b.changes[i])
		if b.builder.Count() >= maxRecords || b.builder.Len() >= maxEntryBytes {
			end()
		}
	}
	if begun {
		end()
	}
	err := c.raft.Step(&pb.Message{Type: pb.MsgProp.Enum(), From: new(c.id), Entries: b.entries})
	if err != nil {
		// Nothing was appended.
		clear(l.inflight[first:])
		l.inflight = l.inflight[:first]
		l.promises = b.before
		// Leadership is being handed over, or too much is under way already: they
		// wait, and have their deadlines.
		c.writes = append(b.waiters, c.writes...)
		return
	}
	c.counts.proposals.Add(uint64(len(b.entries)))
	c.counts.records.Add(uint64(len(b.changes)))
	l.proposed = b.now
	last := l.inflight[len(l.inflight)-1]
	last.waiters, last.evicting = b.waiters, b.evicted
	l.evicting += b.evicted
	for _, r := range b.waiters {
		r.begun = true
	}
	for i := range b.changes {
		ch := &b.changes[i]
		p := pending{item: ch.Item}
		p.item.Value = nil
		if from := b.bytes[i]; from >= 0 {
			p.data, p.rec = l.inflight[where[from].entry].data, where[from].rec
		} else if old, ok := l.overlay[ch.Key.Hash]; ok && old.item.Stored == ch.Item.Stored {
			p.data, p.rec = old.data, old.rec
		}
		l.overlay[ch.Key.Hash] = p
		ch.Item.Value = nil // it may be large
	}
}

// numbered notes the place that Raft gave to proposals of ours. While one has
// none, this member leads, and all entries it appends are its own.
func (l *leadership) numbered(entries []*pb.Entry) {
	if len(l.inflight) == 0 || l.inflight[len(l.inflight)-1].index != 0 {
		return
	}
	for _, e := range entries {
		if e.GetType() != pb.EntryNormal || len(e.GetData()) == 0 {
			continue
		}
		rd, err := codec.Open(e.GetData())
		if err != nil {
			panic(err) // it was made here
		}
		for _, p := range l.inflight {
			if p.index == 0 && p.number == rd.Header.Batch {
				p.index, p.term = e.GetIndex(), e.GetTerm()
			}
		}
	}
}

// settleProposals answers those who wait for this entry, and has those decided
// again whose place another entry took. An entry of a later term says so of all
// that were proposed before it: terms only grow along the log.
func (c *core) settleProposals(e *pb.Entry) {
	l := &c.lead
	for len(l.inflight) > 0 && (l.inflight[0].index <= e.GetIndex() || l.inflight[0].term < e.GetTerm()) {
		p := l.inflight[0]
		l.inflight[0] = nil
		l.inflight = l.inflight[1:]
		if p.index == e.GetIndex() && p.term == e.GetTerm() {
			l.evicting = max(l.evicting-p.evicting, 0)
			c.forgetPending(p)
			for _, r := range p.waiters {
				if r.trace != nil {
					r.trace.Ended("apply", "applied here")
				}
				c.finish(r, p.index, nil)
			}
			continue
		}
		// It is not in the log, so it was not executed.
		for _, r := range p.waiters {
			c.again(r)
		}
	}
	if l.floor != 0 && l.floor <= c.replica.Floor() {
		l.floor = 0
	}
	if l.hasFlushAt && l.flushAt == c.st.flushAt {
		l.hasFlushAt = false
	}
}

// forgetPending takes what is applied out of the overlay.
func (c *core) forgetPending(p *proposal) {
	if len(c.lead.overlay) == 0 {
		return
	}
	rd, err := codec.Open(p.data)
	if err != nil {
		panic(err) // it was made here
	}
	rec := &c.snaps.rec
	for rd.Next(rec) {
		if rec.Kind != codec.KindChange {
			continue
		}
		h := rec.Change.Key.Hash
		if rec.Change.Key.Text != nil {
			h = c.replica.Hash(rec.Change.Key.Text)
		}
		if o, ok := c.lead.overlay[h]; ok && o.item.Version == rec.Change.Item.Version {
			delete(c.lead.overlay, h)
		}
	}
}

// again has a request decided once more that was certainly not executed.
func (c *core) again(r *request) {
	if r.done {
		return
	}
	r.begun = false
	if r.call == nil && c.soft.RaftState != raft.StateLeader {
		c.finish(r, 0, errNotLeader)
		return
	}
	c.writes = append(c.writes, r)
}
