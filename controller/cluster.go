package controller

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency"
)

// openCluster opens the peer port, for a member that goes by id of a cluster of that
// kind, and watches for what ends this node.
func (n *Node) openCluster(id uint64, kind string) (*cluster.Cluster, error) {
	c, err := cluster.Open(cluster.Options{
		Name: n.cfg.Name, ID: id, Kind: kind, Expect: n.cfg.Expect,
		Peer: n.cfg.Peer, PeerAdvertise: n.cfg.PeerAdvertise, Gossip: n.cfg.Gossip, Join: n.cfg.Join,
		Listen: n.cfg.Listen[0], Admin: n.cfg.Admin, Log: n.log,
	})
	// memberlist passes on the text of an error, and not the error.
	if err != nil && strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
		err = fmt.Errorf("%w; choose other addresses with --peer and --gossip, or stop what uses these", err)
	}
	if err != nil {
		return nil, err
	}
	n.explainOthers(c)
	n.cluster.Store(c)
	n.watch(c.Fatal())
	return c, nil
}

// watch has the node stop when a reason for it comes.
func (n *Node) watch(fatal <-chan error) {
	n.watching.Go(func() {
		select {
		case err := <-fatal:
			n.giveUp(err) // should it be looking for its cluster still
			select {
			case n.fatal <- err:
			default: // one reason will do
			}
		case <-n.ctx.Done():
		}
	})
}

// Fatal delivers the reason why this node cannot go on, should there be one. Its
// owner closes it then.
func (n *Node) Fatal() <-chan error { return n.fatal }

// group is the engine's view of the cluster at a level that needs a quorum.
func (n *Node) group() (consistency.Group, bool) {
	g, ok := n.shards[0].engine.(consistency.Group)
	return g, ok
}

// gossiping is the engine's view of the cluster at a level whose replicas converge.
func (n *Node) gossiping() (consistency.Gossiping, bool) {
	g, ok := n.shards[0].engine.(consistency.Gossiping)
	return g, ok
}

// clusterStats tells what an operator wants to know of the cluster, as this
// controller sees it.
func (n *Node) clusterStats(emit func(string, any)) {
	g, ordered := n.group()
	s, gossips := n.gossiping()
	if !ordered && !gossips {
		return
	}
	health := "ok"
	if err := n.Ready(); err != nil {
		health = err.Error()
	}
	emit("health", health)
	for _, f := range n.faults() {
		emit(fmt.Sprintf("fault_%d", f.ID), fmt.Sprintf("%v until %s", f, f.Until.UTC().Format(time.RFC3339)))
	}
	if ordered {
		orderedStats(g.Status(), emit)
	} else {
		gossipStats(s.Status(), emit)
	}
	if st, ok := n.repairs(); ok {
		repairStats(st, emit)
	}
	for _, m := range n.members() {
		line := fmt.Sprintf("%s %s %s %s %s", m.State, m.Role, orNone(m.Listen), orNone(m.Admin), orNone(m.Lag))
		if gossips {
			line += " " + orNone(m.Behind) + " " + orNone(m.Offset)
		}
		emit("member_"+m.Name, line)
	}
}

// repairs is how the store of this node is, if it is outside this process and there
// are others.
func (n *Node) repairs() (st consistency.RepairStatus, ok bool) {
	r, ok := n.shards[0].engine.(consistency.Repairing)
	if ok = ok && n.shards[0].remote; ok {
		st = r.Repairs()
	}
	return st, ok
}

func repairStats(st consistency.RepairStatus, emit func(string, any)) {
	emit("store_waiting_bytes", st.Waiting)
	emit("store_not_taken", st.Lost)
	emit("store_asked_others", st.Asked)
	emit("store_repaired", st.Found)
	emit("fill_from", orNone(st.Fill.From))
	emit("fill_looked", st.Fill.Looked)
	emit("fill_of", st.Fill.Of)
	emit("fill_lacking", st.Fill.Lacking)
	emit("fill_fetched", st.Fill.Fetched)
	emit("fill_passes", st.Fill.Passes)
}

func orderedStats(st consistency.Status, emit func(string, any)) {
	emit("role", st.Role)
	emit("leader", orNone(st.Leader))
	emit("term", st.Term)
	emit("commit_index", st.Commit)
	emit("applied_index", st.Applied)
	emit("last_index", st.Last)
	emit("lag", st.Commit-st.Applied)
	emit("log_bytes", st.LogBytes)
	emit("voters", st.Voters)
	emit("pending", st.Pending)
	emit("completed", st.Completed)
	emit("proposals", st.Proposals)
	emit("records", st.Records)
	emit("forwards", st.Forwards)
	emit("read_rounds", st.Rounds)
	emit("leader_changes", st.Terms)
	emit("unanchored_sessions", st.Unanchored)
	emit("refused_changes", st.Refused)
	emit("leaderless_ms", st.Leaderless.Milliseconds())
}

func gossipStats(st consistency.GossipStatus, emit func(string, any)) {
	alive, equal, lag, behind := 0, 0, uint64(0), uint64(0)
	for _, p := range st.Peers {
		if !p.Alive {
			continue
		}
		alive++
		if p.Equal {
			equal++
		}
		lag, behind = max(lag, p.Lag), max(behind, p.Behind)
	}
	emit("origin", fmt.Sprintf("%016x", st.ID))
	emit("changes", st.Seq)
	emit("peers", len(st.Peers))
	emit("peers_alive", alive)
	emit("peers_equal", equal)
	emit("lag", lag)
	emit("behind", behind)
	emit("tombstones", st.Tombstones)
	emit("collected_to", orNever(st.Collected))
	if st.Waits != "" {
		emit("collection_waits", st.Waits)
	}
	emit("clock_skew_ms", st.Skew.Milliseconds())
	emit("ring_bytes", st.RingBytes)
	emit("held_back", st.Held)
	emit("held_back_bytes", st.HeldBytes)
	emit("waiting_for_acks", st.Waiting)
	emit("changes_received", st.Received)
	emit("changes_applied", st.Applied)
	emit("changes_duplicate", st.Duplicates)
	emit("changes_dropped", st.Overflowed)
	emit("changes_too_far_ahead", st.TooFar)
	emit("resends", st.Resent)
	emit("reconciles", st.Reconciles)
	emit("reconcile_differing", st.Differing)
	emit("reconcile_repaired", st.Repaired)
	emit("cuts", st.Cuts)
	emit("collected", st.Forgotten)
	emit("expelled", st.Expelled)
	emit("forwarded", st.Forwarded)
	emit("forwarded_here", st.Served)
	emit("forwards_refused", st.Refused)
	emit("forwards_unknown", st.Unknown)
}

func orNever(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

// acksOf is write-acks as it was set.
func acksOf(n int) string {
	if n == consistency.AllAcks {
		return "all"
	}
	return fmt.Sprint(n)
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// memberInfo is a controller of the cluster as this one knows it.
type memberInfo struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Role   string `json:"role"`
	Listen string `json:"listen"`
	Admin  string `json:"admin"`
	Lag    string `json:"lag"`
	// Behind and Offset are known at the levels causal and eventual: how many changes
	// are there and not here, and its clock.
	Behind string `json:"behind"`
	Offset string `json:"offset"`
}

// members joins what gossip and what the engine say of each controller.
func (n *Node) members() []memberInfo {
	c := n.cluster.Load()
	if c == nil {
		return nil
	}
	if s, ok := n.gossiping(); ok {
		return gossipMembers(c, s.Status())
	}
	g, ok := n.group()
	if !ok {
		return nil
	}
	st := g.Status()
	byID := make(map[uint64]consistency.MemberStatus, len(st.Members))
	for _, m := range st.Members {
		byID[m.ID] = m
	}
	var all []memberInfo
	seen := make(map[string]bool)
	for _, m := range c.Members() {
		info := memberInfo{Name: m.Name, State: stateOf(m), Role: "outside", Listen: m.Listen, Admin: m.Admin}
		if s, ok := byID[m.ID]; ok {
			info.Role, info.Lag = roleOf(s, &st), lagOf(s, &st)
			if m.Left {
				info.State = stateFailed // it stopped, and quorums count on it still
			}
		}
		seen[m.Name] = true
		all = append(all, info)
	}
	for _, m := range st.Members {
		if !seen[m.Name] {
			seen[m.Name] = true
			all = append(all, memberInfo{Name: m.Name, State: stateFailed, Role: roleOf(m, &st), Lag: lagOf(m, &st)})
		}
	}
	return all
}

// The states of a member.
const (
	stateReady  = "ready"
	stateAlive  = "alive" // and does not serve its level
	stateFailed = "failed"
	stateLeft   = "left" // on purpose: nobody waits for it
)

func stateOf(m cluster.Member) string {
	switch {
	case m.Alive && m.Ready:
		return stateReady
	case m.Alive:
		return stateAlive
	case m.Left:
		return stateLeft
	default:
		return stateFailed
	}
}

// gossipMembers has for a role how a member's copy compares with this one: equal if
// it has exactly what is here, as it last told; while changes come, that differs for a
// moment. The lag is in changes that are here and not there.
func gossipMembers(c *cluster.Cluster, st consistency.GossipStatus) []memberInfo {
	byID := make(map[uint64]consistency.PeerStatus, len(st.Peers))
	for _, p := range st.Peers {
		byID[p.ID] = p
	}
	var all []memberInfo
	for _, m := range c.Members() {
		info := memberInfo{Name: m.Name, State: stateOf(m), Listen: m.Listen, Admin: m.Admin}
		p, known := byID[m.ID]
		switch {
		case m.Self:
			info.Role = "self"
		case !known:
			info.Role = "outside"
		case !m.Alive || p.Heard < 0:
			info.Role = "unknown"
		case p.Equal:
			info.Role = "equal"
		default:
			info.Role = "differs"
		}
		if known && p.Heard >= 0 {
			info.Lag, info.Behind, info.Offset = fmt.Sprint(p.Lag), fmt.Sprint(p.Behind), p.Offset.String()
		}
		all = append(all, info)
	}
	return all
}

func roleOf(m consistency.MemberStatus, st *consistency.Status) string {
	switch {
	case m.Name == st.Leader:
		return "leader"
	case m.Voter:
		return "voter"
	default:
		return "learner"
	}
}

// lagOf is how many log entries a member lacks, which only the leader knows.
func lagOf(m consistency.MemberStatus, st *consistency.Status) string {
	if st.Role != "leader" {
		return ""
	}
	return fmt.Sprint(max(int64(st.Last)-int64(m.Match), 0))
}

// serveRecover forces a new cluster, for `attune recover`.
func (n *Node) serveRecover(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "POST it, with force-new-cluster=yes", http.StatusMethodNotAllowed)
		return
	}
	g, ok := n.group()
	switch {
	case !ok:
		http.Error(w, fmt.Sprintf("level %v has no quorum to lose", n.cfg.Level), http.StatusConflict)
	case r.PostFormValue("force-new-cluster") != "yes":
		http.Error(w, "say force-new-cluster=yes: writes that only the lost controllers have are given up", http.StatusBadRequest)
	default:
		if err := g.ForceNewCluster(); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		answerJSON(w, map[string]string{"status": "this controller is a new cluster; restart the others, without their data"})
	}
}

// errOpening is why a node is not ready that has not found its place yet.
var errOpening = errors.New("looking for the other controllers")

// opening says what Open waits for.
func (n *Node) opening() error {
	if health := n.health.Load(); health != nil {
		if err := (*health)(); err != nil {
			return err
		}
	}
	if c := n.cluster.Load(); c != nil {
		if text := c.Waiting(); text != "" {
			return fmt.Errorf("%w: %s", errOpening, text)
		}
	}
	return errOpening
}
