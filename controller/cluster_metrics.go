package controller

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/consistency"
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
	equalDesc      = prometheus.NewDesc("attune_gossip_peer_equal", "1 if a live peer has exactly what is here, by version vector and sketch.", []string{"member"}, nil)
	lagDesc        = prometheus.NewDesc("attune_gossip_lag", "Changes that one of two members lacks: missing there, of those that are here, or missing here.", []string{"member", "missing"}, nil)
	offsetDesc     = prometheus.NewDesc("attune_gossip_clock_offset_seconds", "How far a peer's clock is ahead of this one's.", []string{"member"}, nil)
	skewDesc       = prometheus.NewDesc("attune_gossip_clock_skew_seconds", "How far the median of all clocks is ahead of this one's. Beyond max-skew writes are refused.", nil, nil)
	maxSkewDesc    = prometheus.NewDesc("attune_gossip_max_skew_seconds", "The setting max-skew.", nil, nil)
	tombstonesDesc = prometheus.NewDesc("attune_gossip_tombstones", "Dead items that are remembered until all members know of them.", nil, nil)
	ringDesc       = prometheus.NewDesc("attune_gossip_ring_bytes", "Changes kept to be sent, and sent again.", nil, nil)
	heldDesc       = prometheus.NewDesc("attune_gossip_held_back_bytes", "Changes that wait for what they depend on, or for those before them.", nil, nil)
	ackWaitDesc    = prometheus.NewDesc("attune_gossip_waiting_for_acks", "Requests that wait until enough members have their changes.", nil, nil)
	differingDesc  = prometheus.NewDesc("attune_gossip_differing_keys", "Keys that differed when this replica was last reconciled with another.", nil, nil)
	collectedDesc  = prometheus.NewDesc("attune_gossip_collected_to_seconds", "Up to when what is dead was forgotten, in unix time.", nil, nil)
	gossipedDesc   = prometheus.NewDesc("attune_gossip_changes_total", "Changes, by what became of them here.", []string{"what"}, nil)
	resentDesc     = prometheus.NewDesc("attune_gossip_resends_total", "Times that a peer made no progress and was sent again what it lacks.", nil, nil)
	reconcilesDesc = prometheus.NewDesc("attune_gossip_reconciles_total", "Times that this replica took from another what it lacked.", nil, nil)

	reconcileBytesDesc = prometheus.NewDesc("attune_gossip_reconcile_bytes_total", "Bytes of reconciliation.", []string{"direction"}, nil)

	cutsDesc      = prometheus.NewDesc("attune_gossip_cuts_total", "Times that all members agreed to forget what is dead.", nil, nil)
	forgottenDesc = prometheus.NewDesc("attune_gossip_forgotten_total", "Dead items that were forgotten.", nil, nil)
	expelledDesc  = prometheus.NewDesc("attune_gossip_expelled_total", "Absent members that the others ceased to wait for.", nil, nil)
	homeDesc      = prometheus.NewDesc("attune_gossip_forwarded_total", "Commands that the home of their key decides: sent there, decided here for others, refused to others, or sent and without an answer.", []string{"what"}, nil)
	stageDesc     = prometheus.NewDesc("attune_store_waiting_bytes", "Values on their way to a backend outside this process.", nil, nil)
	behindDesc    = prometheus.NewDesc("attune_store_behind", "1 while so many values wait for a backend outside this process that writes are slowed down.", nil, nil)
	repairDesc    = prometheus.NewDesc("attune_store_values_total", "Values that a backend outside this process did not take, those the other controllers were asked for, those of them that were repaired so, and those fetched to fill it.", []string{"what"}, nil)
	fillingDesc   = prometheus.NewDesc("attune_store_filling", "1 while the backend outside this process is being filled from another controller.", nil, nil)
	fillDesc      = prometheus.NewDesc("attune_store_fill_items", "Of the pass under way, or the last: items looked for, of about how many, and those that were lacking.", []string{"which"}, nil)
	aliveDesc     = prometheus.NewDesc("attune_member_up", "1 if a member is alive, as gossip has it; none of one that left.", []string{"member"}, nil)
	membersDesc   = prometheus.NewDesc("attune_members", "Members, this one included, by how they are: ready, alive and not ready, failed, or left on purpose.", []string{"state"}, nil)
	peerBytesDesc = prometheus.NewDesc("attune_peer_bytes_total", "Bytes exchanged with other controllers.", []string{"class", "direction"}, nil)
	peerDropDesc  = prometheus.NewDesc("attune_peer_dropped_total", "Frames to other controllers that were dropped.", []string{"class"}, nil)
	peerQueueDesc = prometheus.NewDesc("attune_peer_queue_bytes", "Bytes waiting to be sent to other controllers.", []string{"class"}, nil)
	peerBadDesc   = prometheus.NewDesc("attune_peer_refused_total", "Connections of other controllers refused, or broken off because they sent garbage.", []string{"reason"}, nil)
)

var peerClasses = map[cluster.Class]string{
	cluster.Control: "control", cluster.Log: "log", cluster.Calls: "calls", cluster.Bulk: "bulk",
}

// collectCluster shows what an engine that has members tells of them.
func (n *Node) collectCluster(count, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	c := n.cluster.Load()
	if c == nil {
		return
	}
	if g, ok := n.group(); ok {
		collectOrdered(g.Status(), count, gauge)
	} else if s, ok := n.gossiping(); ok {
		collectGossip(s.Status(), count, gauge)
		gauge(maxSkewDesc, n.inUse().MaxSkew.Seconds())
	}
	if st, ok := n.repairs(); ok {
		gauge(stageDesc, float64(st.Waiting))
		gauge(behindDesc, flag(st.Behind))
		gauge(fillingDesc, flag(st.Fill.From != ""))
		gauge(fillDesc, float64(st.Fill.Looked), "looked")
		gauge(fillDesc, float64(st.Fill.Of), "of")
		gauge(fillDesc, float64(st.Fill.Lacking), "lacking")
		count(repairDesc, float64(st.Lost), "not_taken")
		count(repairDesc, float64(st.Asked), "asked")
		count(repairDesc, float64(st.Found), "repaired")
		count(repairDesc, float64(st.Fill.Fetched), "filled")
	}
	states := map[string]int{stateReady: 0, stateAlive: 0, stateFailed: 0, stateLeft: 0}
	for _, m := range n.members() {
		if states[m.State]++; m.State != stateLeft {
			gauge(aliveDesc, flag(m.State != stateFailed), m.Name)
		}
	}
	for state, count := range states {
		gauge(membersDesc, float64(count), state)
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

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func collectGossip(st consistency.GossipStatus, count, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	for _, p := range st.Peers {
		gauge(equalDesc, flag(p.Equal && p.Alive), p.Name)
		if p.Heard < 0 {
			continue // nothing is known of it
		}
		gauge(lagDesc, float64(p.Lag), p.Name, "there")
		gauge(lagDesc, float64(p.Behind), p.Name, "here")
		gauge(offsetDesc, p.Offset.Seconds(), p.Name)
	}
	gauge(skewDesc, st.Skew.Seconds())
	gauge(tombstonesDesc, float64(st.Tombstones))
	gauge(ringDesc, float64(st.RingBytes))
	gauge(heldDesc, float64(st.HeldBytes))
	gauge(ackWaitDesc, float64(st.Waiting))
	gauge(differingDesc, float64(st.Differing))
	if !st.Collected.IsZero() {
		gauge(collectedDesc, float64(st.Collected.Unix()))
	}
	for _, c := range []struct {
		what string
		n    uint64
	}{
		{"made", st.Seq}, {"received", st.Received}, {"applied", st.Applied}, {"duplicate", st.Duplicates},
		{"held_back", st.HeldBack}, {"dropped", st.Overflowed}, {"repaired", st.Repaired}, {"too_far_ahead", st.TooFar},
	} {
		count(gossipedDesc, float64(c.n), c.what)
	}
	count(resentDesc, float64(st.Resent))
	count(reconcilesDesc, float64(st.Reconciles))
	count(reconcileBytesDesc, float64(st.ReconcileIn), "in")
	count(reconcileBytesDesc, float64(st.ReconcileOut), "out")
	count(cutsDesc, float64(st.Cuts))
	count(forgottenDesc, float64(st.Forgotten))
	count(expelledDesc, float64(st.Expelled))
	count(homeDesc, float64(st.Forwarded), "sent")
	count(homeDesc, float64(st.Served), "decided")
	count(homeDesc, float64(st.Refused), "refused")
	count(homeDesc, float64(st.Unknown), "unknown")
}

func collectOrdered(st consistency.Status, count, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
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
}
