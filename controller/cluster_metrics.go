package controller

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attunekv/attune/cluster"
)

var (
	roleDesc       = prometheus.NewDesc("attune_raft_role", "1 for the role this node has in its group.", []string{"role"}, nil)
	leaderDesc     = prometheus.NewDesc("attune_raft_has_leader", "1 if this node knows of a leader.", nil, nil)
	termDesc       = prometheus.NewDesc("attune_raft_term", "Raft's term.", nil, nil)
	indexDesc      = prometheus.NewDesc("attune_raft_index", "Log index, of the newest entry stored here, known to be committed, or applied.", []string{"of"}, nil)
	logDesc        = prometheus.NewDesc("attune_raft_log_bytes", "Bytes of log kept in memory for followers.", nil, nil)
	votersDesc     = prometheus.NewDesc("attune_raft_voters", "Members that vote.", nil, nil)
	pendingDesc    = prometheus.NewDesc("attune_requests_pending", "Requests to the engine that are not answered yet.", nil, nil)
	completedDesc  = prometheus.NewDesc("attune_requests_completed_total", "Requests the engine has answered, for clients here and for other controllers.", nil, nil)
	proposalsDesc  = prometheus.NewDesc("attune_raft_proposals_total", "Log entries proposed by this node.", nil, nil)
	recordsDesc    = prometheus.NewDesc("attune_raft_records_total", "Changes in those entries.", nil, nil)
	forwardsDesc   = prometheus.NewDesc("attune_forwarded_total", "Requests sent to the leader.", nil, nil)
	roundsDesc     = prometheus.NewDesc("attune_read_rounds_total", "Read-index rounds; all reads that wait share one.", nil, nil)
	changesDesc    = prometheus.NewDesc("attune_raft_changes_total", "Changes of role or leader seen here.", nil, nil)
	unanchoredDesc = prometheus.NewDesc("attune_unanchored_sessions_total", "Connections at the sequential level that began without a read index, for want of a quorum.", nil, nil)
	brokenDesc     = prometheus.NewDesc("attune_refused_changes_total", "Committed changes that did not hold when applied. Always 0, or there is a bug: report it.", nil, nil)
	matchDesc      = prometheus.NewDesc("attune_raft_member_lag", "Log entries that a member lacks; known to the leader.", []string{"member"}, nil)
	aliveDesc      = prometheus.NewDesc("attune_member_up", "1 if a member is alive, as gossip has it.", []string{"member"}, nil)
	peerBytesDesc  = prometheus.NewDesc("attune_peer_bytes_total", "Bytes exchanged with other controllers.", []string{"class", "direction"}, nil)
	peerDropDesc   = prometheus.NewDesc("attune_peer_dropped_total", "Frames to other controllers that were dropped.", []string{"class"}, nil)
	peerQueueDesc  = prometheus.NewDesc("attune_peer_queue_bytes", "Bytes waiting to be sent to other controllers.", []string{"class"}, nil)
	peerBadDesc    = prometheus.NewDesc("attune_peer_refused_total", "Connections of other controllers refused, or broken off because they sent garbage.", []string{"reason"}, nil)
)

var peerClasses = map[cluster.Class]string{
	cluster.Control: "control", cluster.Log: "log", cluster.Calls: "calls", cluster.Bulk: "bulk",
}

// collectCluster shows what an engine that has members tells of them.
func (n *Node) collectCluster(count, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	g, c := n.group(), n.cluster.Load()
	if g == nil || c == nil {
		return
	}
	st := g.Status()
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(roleDesc, 1, st.Role)
	gauge(leaderDesc, flag(st.Leader != ""))
	gauge(termDesc, float64(st.Term))
	gauge(indexDesc, float64(st.Last), "last")
	gauge(indexDesc, float64(st.Commit), "committed")
	gauge(indexDesc, float64(st.Applied), "applied")
	gauge(logDesc, float64(st.LogBytes))
	gauge(votersDesc, float64(st.Voters))
	gauge(pendingDesc, float64(st.Pending))
	count(completedDesc, float64(st.Completed))
	count(proposalsDesc, float64(st.Proposals))
	count(recordsDesc, float64(st.Records))
	count(forwardsDesc, float64(st.Forwards))
	count(roundsDesc, float64(st.Rounds))
	count(changesDesc, float64(st.Terms))
	count(unanchoredDesc, float64(st.Unanchored))
	count(brokenDesc, float64(st.Refused))
	if st.Role == "leader" {
		seen := make(map[string]bool)
		for _, m := range st.Members {
			if !seen[m.Name] { // two for a moment, when one replaces its predecessor
				seen[m.Name] = true
				gauge(matchDesc, max(float64(st.Last)-float64(m.Match), 0), m.Name)
			}
		}
	}
	for _, m := range c.Members() {
		gauge(aliveDesc, flag(m.Alive), m.Name)
	}
	ps := c.Stats()
	for class, name := range peerClasses {
		s := ps.Class[class]
		count(peerBytesDesc, float64(s.BytesIn), name, "in")
		count(peerBytesDesc, float64(s.BytesOut), name, "out")
		count(peerDropDesc, float64(s.Dropped), name)
		gauge(peerQueueDesc, float64(s.Queued), name)
	}
	count(peerBadDesc, float64(ps.Refused), "refused")
	count(peerBadDesc, float64(ps.Invalid), "garbage")
}
