package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency"
)

// kindOrdered names the engine to other controllers: those of another kind are
// not of this cluster.
const kindOrdered = "ordered"

// openCluster opens the peer port, for a member that goes by id, and watches for
// what ends this node.
func (n *Node) openCluster(id uint64) (*cluster.Cluster, error) {
	c, err := cluster.Open(cluster.Options{
		Name: n.cfg.Name, ID: id, Kind: kindOrdered, Expect: n.cfg.Expect,
		Peer: n.cfg.Peer, PeerAdvertise: n.cfg.PeerAdvertise, Gossip: n.cfg.Gossip, Join: n.cfg.Join,
		Listen: n.cfg.Listen[0], Admin: n.cfg.Admin, Log: n.log,
	})
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w; choose other addresses with --peer and --gossip, or stop what uses these", err)
	}
	if err != nil {
		return nil, err
	}
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

// group is the engine's view of the cluster, or nil at a level that has none.
func (n *Node) group() consistency.Group {
	g, _ := n.shards[0].engine.(consistency.Group)
	return g
}

// clusterStats tells what an operator wants to know of the cluster, as this
// controller sees it.
func (n *Node) clusterStats(emit func(string, any)) {
	g := n.group()
	if g == nil {
		return
	}
	st := g.Status()
	health := "ok"
	if err := n.Ready(); err != nil {
		health = err.Error()
	}
	emit("health", health)
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
	for _, m := range n.members() {
		emit("member_"+m.Name, fmt.Sprintf("%s %s %s %s %s", m.State, m.Role, orNone(m.Listen), orNone(m.Admin), orNone(m.Lag)))
	}
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// memberInfo is a controller of the cluster as this one knows it.
type memberInfo struct {
	Name, State, Role, Listen, Admin, Lag string
}

// members joins what gossip and what the log say of each controller.
func (n *Node) members() []memberInfo {
	g, c := n.group(), n.cluster.Load()
	if g == nil || c == nil {
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
		info := memberInfo{Name: m.Name, State: "failed", Role: "outside", Listen: m.Listen, Admin: m.Admin}
		switch {
		case m.Alive && m.Ready:
			info.State = "ready"
		case m.Alive:
			info.State = "alive"
		}
		if s, ok := byID[m.ID]; ok {
			info.Role, info.Lag = roleOf(s, &st), lagOf(s, &st)
		}
		seen[m.Name] = true
		all = append(all, info)
	}
	for _, m := range st.Members {
		if !seen[m.Name] {
			seen[m.Name] = true
			all = append(all, memberInfo{Name: m.Name, State: "failed", Role: roleOf(m, &st), Lag: lagOf(m, &st)})
		}
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
	g := n.group()
	switch {
	case g == nil:
		http.Error(w, fmt.Sprintf("level %v has no quorum to lose", n.cfg.Level), http.StatusConflict)
	case r.PostFormValue("force-new-cluster") != "yes":
		http.Error(w, "say force-new-cluster=yes: writes that only the lost controllers have are given up", http.StatusBadRequest)
	default:
		if err := g.ForceNewCluster(); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"status": "this controller is a new cluster; restart the others, without their data"})
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
