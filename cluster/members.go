package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"
)

const (
	// forgetAfter is how long a dead node is remembered and looked for.
	// memberlist forgets one after 30 s, and a partition may last longer.
	forgetAfter = 24 * time.Hour
	// maxHeard is how many nodes are remembered that gossip has not told of.
	maxHeard = 1024
)

// Member is what is known of a node.
type Member struct {
	Name    string
	ID      uint64
	Peer    string // host:port of its peer port
	Gossip  string // ip:port
	Listen  string // where it serves clients, as it says
	Admin   string
	Cluster uint64 // [Hash] of the cluster it belongs to, 0 for none
	Kind    string
	Expect  int
	Alive   bool // as far as gossip knows, and not of a foreign cluster
	Left    bool // it is gone, and said before that it would go: see [Cluster.Leave]
	Self    bool
	Ready   bool // it serves clients, it says
}

// members is the table of nodes, by name: a name that comes back with another id
// replaces what it was.
type members struct {
	c    *Cluster
	poke chan struct{} // has room for one: the table has changed

	mu      sync.Mutex
	byName  map[string]*record // all but this node
	byID    map[uint64]*record
	heard   map[uint64]string // addresses from hellos of ids that are not in byID
	version chan struct{}     // closed and replaced at every change
}

type record struct {
	name   string
	gossip string // ip:port
	meta
	alive bool
	came  time.Time // when it was first seen of those times that it was alive last
	died  time.Time // after that
	bye   time.Time // when it said that it leaves
}

// left reports whether it went on purpose the last time it was here.
func (r *record) left() bool { return !r.alive && r.bye.After(r.came) }

func (m *members) open(c *Cluster) {
	m.c, m.poke, m.version = c, make(chan struct{}, 1), make(chan struct{})
	m.byName, m.byID, m.heard = make(map[string]*record), make(map[uint64]*record), make(map[uint64]string)
}

// changed tells everybody who waits for a change.
func (m *members) changed() {
	m.mu.Lock()
	m.changedLocked()
	m.mu.Unlock()
}

func (m *members) changedLocked() {
	close(m.version)
	m.version = make(chan struct{})
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// change returns a channel that is closed at the next change.
func (m *members) change() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.version
}

// notify calls OnChange's function.
func (m *members) notify() {
	for {
		select {
		case <-m.poke:
			if fn := m.c.onChange.Load(); fn != nil {
				(*fn)()
			}
		case <-m.c.ctx.Done():
			return
		}
	}
}

// Members returns all nodes known, this one and dead ones included, by name.
func (c *Cluster) Members() []Member {
	m := &c.members
	m.mu.Lock()
	all := make([]Member, 0, len(m.byName)+1)
	for _, r := range m.byName {
		all = append(all, m.memberLocked(r))
	}
	m.mu.Unlock()
	all = append(all, c.self())
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Member returns the node with an id, dead or alive.
func (c *Cluster) Member(id uint64) (Member, bool) {
	if id == c.o.ID {
		return c.self(), true
	}
	m := &c.members
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.byID[id]; r != nil {
		return m.memberLocked(r), true
	}
	return Member{}, false
}

// self is this node.
func (c *Cluster) self() Member {
	own := c.meta()
	told := own.member(c.o.Name, true, true)
	told.Gossip = c.GossipAddr()
	return told
}

func (m *members) memberLocked(r *record) Member {
	told := r.member(r.name, r.alive && !foreign(r.cluster, m.c.hash.Load()), false)
	told.Gossip, told.Left = r.gossip, r.left()
	return told
}

func (m *meta) member(name string, alive, self bool) Member {
	return Member{
		Name: name, ID: m.id, Peer: m.peer, Listen: m.listen, Admin: m.admin, Cluster: m.cluster,
		Kind: m.kind, Expect: int(m.expect), Alive: alive, Self: self, Ready: m.ready && alive,
	}
}

// address returns where to dial an id, "" if nobody knows.
func (c *Cluster) address(id uint64) string {
	m := &c.members
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.byID[id]; r != nil {
		return r.peer
	}
	return m.heard[id]
}

// heard notes who said hello. It lives, so waiting before the next attempt to
// reach it is over; and an answer to it can be sent before gossip knows it.
func (c *Cluster) heard(h *hello) {
	m := &c.members
	m.mu.Lock()
	if m.byID[h.from] == nil && h.peer != "" {
		if len(m.heard) >= maxHeard {
			for id := range m.heard {
				delete(m.heard, id) // any: gossip will tell of those that matter
				break
			}
		}
		m.heard[h.from] = h.peer
	}
	m.mu.Unlock()
	c.linksMu.RLock()
	defer c.linksMu.RUnlock()
	for class := range classes {
		if l := c.links[linkKey{h.from, class}]; l != nil {
			l.hope()
		}
	}
}

// learn enters what gossip says of a node that lives.
func (m *members) learn(name, gossip string, words meta) {
	m.mu.Lock()
	r := m.byName[name]
	if r == nil {
		r = &record{name: name}
		m.byName[name] = r
	}
	gone := r.id
	if gone == words.id || m.byID[gone] != r {
		gone = 0 // or the id goes by another name now
	}
	delete(m.byID, gone)
	// Who has something new to say after it took its leave is here again.
	if !r.alive || r.meta != words && r.bye.After(r.came) {
		r.alive, r.came = true, time.Now()
	}
	r.meta, r.gossip = words, gossip
	m.byID[r.id] = r
	delete(m.heard, r.id)
	m.changedLocked()
	m.mu.Unlock()
	if gone != 0 {
		m.c.unlink(gone)
	}
}

// mourn notes that a node died or left.
func (m *members) mourn(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.byName[name]; r != nil && r.alive {
		r.alive, r.died = false, time.Now()
		m.changedLocked()
	}
}

// mournOthers notes that all nodes died but those.
func (m *members) mournOthers(living []*memberlist.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, r := range m.byName {
		if r.alive && !slices.ContainsFunc(living, func(n *memberlist.Node) bool { return n.Name == name }) {
			r.alive, r.died = false, time.Now()
			m.changedLocked()
		}
	}
}

// forget drops nodes that have been dead for long.
func (m *members) forget() {
	var gone []uint64
	m.mu.Lock()
	for name, r := range m.byName {
		if !r.alive && time.Since(r.died) > forgetAfter {
			delete(m.byName, name)
			if m.byID[r.id] == r {
				delete(m.byID, r.id)
				gone = append(gone, r.id)
			}
			m.changedLocked()
		}
	}
	m.mu.Unlock()
	for _, id := range gone {
		m.c.unlink(id)
	}
}

// addresses returns the gossip addresses of all nodes but this one.
func (m *members) addresses() (alive, dead []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for r := range maps.Values(m.byName) {
		if r.alive {
			alive = append(alive, r.gossip)
		} else {
			dead = append(dead, r.gossip)
		}
	}
	return alive, dead
}

// unlink ends the connections to an id that will not come back.
func (c *Cluster) unlink(id uint64) {
	c.linksMu.Lock()
	defer c.linksMu.Unlock()
	for class := range classes {
		key := linkKey{id, class}
		if l := c.links[key]; l != nil {
			l.cancel()
			delete(c.links, key)
		}
	}
}

// delegate is what memberlist calls, mostly under its lock: so nothing here
// calls memberlist or waits. A memberlist that was given up goes on for a while, and is
// not believed.
type delegate struct {
	c  *Cluster
	at *place // told by this memberlist
}

func (d delegate) obsolete() bool { return d.c.place.Load() != d.at }

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.AliveDelegate    = delegate{}
	_ memberlist.MergeDelegate    = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
)

// NodeMeta returns this node's own words.
func (d delegate) NodeMeta(int) []byte {
	own := d.c.meta()
	return own.append(nil) // not longer than the limit: openGossip looked
}

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.learn(n) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.learn(n) }

func (d delegate) learn(n *memberlist.Node) {
	if n.Name == d.c.o.Name || d.obsolete() {
		return
	}
	if words, err := parseMeta(n.Meta); err == nil { // else NotifyAlive refused it
		d.c.members.learn(n.Name, n.Address(), words)
	}
}

func (d delegate) NotifyLeave(n *memberlist.Node) {
	if !d.obsolete() {
		d.c.members.mourn(n.Name)
	}
}

// NotifyAlive keeps nodes out with whom nothing can be shared.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	if n.Name == d.c.o.Name {
		return nil // an echo, or a clash: memberlist tells those apart
	}
	why := d.c.reject(n)
	if why != nil {
		d.c.warnings.error(net.JoinHostPort(n.Addr.String(), fmt.Sprint(n.Port)), "refused a node found by gossip: "+why.Error())
	}
	return why
}

// mergeRefused begins the errors of NotifyMerge, as memberlist passes on their text only.
const mergeRefused = "refused to exchange members: "

// NotifyMerge keeps two clusters from telling each other their members.
func (d delegate) NotifyMerge(nodes []*memberlist.Node) error {
	for _, n := range nodes {
		if n.State != memberlist.StateAlive || n.Name == d.c.o.Name {
			continue
		}
		if why := d.c.reject(n); why != nil {
			d.c.warnings.error(n.Address(), mergeRefused+why.Error())
			return errors.New(mergeRefused + why.Error())
		}
	}
	return nil
}

// reject says why a node must not become a member, or nil.
func (c *Cluster) reject(n *memberlist.Node) error {
	words, err := parseMeta(n.Meta)
	own := c.hash.Load()
	switch {
	case err != nil:
		return fmt.Errorf("%s is unknown: %w", printable([]byte(n.Name)), err)
	case words.kind != c.o.Kind:
		return fmt.Errorf("%s is of a %s cluster, this is a %s one: they are never merged", n.Name, words.kind, c.o.Kind)
	case foreign(words.cluster, own):
		c.members.stray(n.Name, words)
		return fmt.Errorf("%s belongs to cluster %016x, this node to %016x: they are never merged; correct --join", n.Name, words.cluster, own)
	case words.id == c.o.ID:
		return fmt.Errorf("%s has the id of this node, %016x: one of them has a copy of the other's storage", n.Name, words.id)
	}
	return nil
}

// stray notes that a node that was known has become a member of another cluster.
func (m *members) stray(name string, words meta) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.byName[name]; r != nil && r.id == words.id && r.cluster != words.cluster {
		r.cluster = words.cluster
		m.changedLocked()
	}
}

func (d delegate) NotifyMsg([]byte)                {}
func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState and MergeRemoteState exchange who left, as memberlist itself does not
// tell one that believes it dead already.
func (d delegate) LocalState(bool) []byte { return d.c.members.leavers() }

func (d delegate) MergeRemoteState(b []byte, _ bool) {
	if !d.obsolete() {
		d.c.members.heardOfLeavers(b)
	}
}

// NotifyConflict is told of a node with the name of another that lives.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.c.seeds.clashed(existing, other)
	if existing.Name != d.c.o.Name {
		d.c.log.Debug("two nodes of one name, or one that moved",
			zap.String("name", existing.Name), zap.String("at", existing.Address()), zap.String("and", other.Address()))
		return
	}
	if words, err := parseMeta(other.Meta); err == nil {
		d.c.clash(words.peer, other.Address())
	}
}
