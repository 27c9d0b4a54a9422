package controller

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attunekv/attune/kvadapter"
)

// collector shows the node's counters to Prometheus as they are at the scrape;
// nothing is counted twice.
type collector struct{ n *Node }

// series says which metric and label values a counter is shown under.
var series = [numCounters]struct {
	desc   *prometheus.Desc
	labels []string
}{
	cmdGet:        {commandsDesc, []string{"get"}},
	cmdSet:        {commandsDesc, []string{"set"}},
	cmdTouch:      {commandsDesc, []string{"touch"}},
	cmdFlush:      {commandsDesc, []string{"flush_all"}},
	cmdMeta:       {commandsDesc, []string{"meta"}},
	getHits:       {resultsDesc, []string{"get", "hit"}},
	getMisses:     {resultsDesc, []string{"get", "miss"}},
	getExpired:    {resultsDesc, []string{"get", "expired"}},
	deleteHits:    {resultsDesc, []string{"delete", "hit"}},
	deleteMisses:  {resultsDesc, []string{"delete", "miss"}},
	incrHits:      {resultsDesc, []string{"incr", "hit"}},
	incrMisses:    {resultsDesc, []string{"incr", "miss"}},
	decrHits:      {resultsDesc, []string{"decr", "hit"}},
	decrMisses:    {resultsDesc, []string{"decr", "miss"}},
	casHits:       {resultsDesc, []string{"cas", "hit"}},
	casMisses:     {resultsDesc, []string{"cas", "miss"}},
	casBadval:     {resultsDesc, []string{"cas", "badval"}},
	touchHits:     {resultsDesc, []string{"touch", "hit"}},
	touchMisses:   {resultsDesc, []string{"touch", "miss"}},
	storeTooLarge: {refusedDesc, []string{"too_large"}},
	storeNoMemory: {refusedDesc, []string{"no_memory"}},
	backendErrors: {failedDesc, nil},
	bytesRead:     {bytesDesc, []string{"in"}},
	bytesWritten:  {bytesDesc, []string{"out"}},
}

var (
	commandsDesc = prometheus.NewDesc("attune_commands_total", "Commands executed; meta counts the meta commands among the others.", []string{"command"}, nil)
	resultsDesc  = prometheus.NewDesc("attune_results_total", "Outcomes of commands; expired reads are misses too.", []string{"command", "result"}, nil)
	refusedDesc  = prometheus.NewDesc("attune_stores_refused_total", "Values refused, by reason.", []string{"reason"}, nil)
	failedDesc   = prometheus.NewDesc("attune_failed_total", "Commands that ended in SERVER_ERROR because the engine or the backend failed.", nil, nil)
	bytesDesc    = prometheus.NewDesc("attune_client_bytes_total", "Bytes moved between clients and this node.", []string{"direction"}, nil)
	durationDesc = prometheus.NewDesc("attune_command_duration_seconds", "From the arrival of a command's last byte to the write of its reply.", []string{"verb"}, nil)
	connsDesc    = prometheus.NewDesc("attune_connections", "Client connections now.", nil, nil)
	connsMaxDesc = prometheus.NewDesc("attune_connections_limit", "Client connections allowed.", nil, nil)
	connsAllDesc = prometheus.NewDesc("attune_connections_total", "Client connections accepted.", nil, nil)
	connsNoDesc  = prometheus.NewDesc("attune_connections_rejected_total", "Client connections refused because there were too many.", nil, nil)
	itemsDesc    = prometheus.NewDesc("attune_items", "Items held, dead ones not collected yet included.", nil, nil)
	memoryDesc   = prometheus.NewDesc("attune_memory_bytes", "Memory of items: the index, and values kept in this process, overhead included.", []string{"part"}, nil)
	limitDesc    = prometheus.NewDesc("attune_memory_limit_bytes", "The limit of index and values together; 0 is none.", nil, nil)
	goneDesc     = prometheus.NewDesc("attune_items_removed_total", "Items removed other than by a client, by reason.", []string{"reason"}, nil)
	lostDesc     = prometheus.NewDesc("attune_backend_lost_total", "Reads of items whose bytes the backend did not have: it had none (missing), or others, which are never an answer (stale).", []string{"what"}, nil)
	damageDesc   = prometheus.NewDesc("attune_store_damages_total", "Times that damaged files of a backend on this machine were given up, with the values in them.", nil, nil)
	hotDesc      = prometheus.NewDesc("attune_hot_cache_bytes", "Memory of values that are read often, in front of a backend outside this process.", nil, nil)
	hotReadsDesc = prometheus.NewDesc("attune_hot_cache_reads_total", "Reads of such a backend's values: hits were in this memory, misses had to be fetched.", []string{"result"}, nil)
	hotGoneDesc  = prometheus.NewDesc("attune_hot_cache_evicted_total", "Values that went from there for others.", nil, nil)
	backendDesc  = prometheus.NewDesc("attune_backend", "Figures of the backend, by name.", []string{"name"}, nil)
	serverUpDesc = prometheus.NewDesc("attune_backend_up", "1 if the backend's server answers; 0: calls fail at once until it does.", []string{"server"}, nil)
	serverNoDesc = prometheus.NewDesc("attune_backend_errors_total", "Calls that a server of the backend failed.", []string{"server"}, nil)
	serverDesc   = prometheus.NewDesc("attune_backend_duration_seconds", "Calls to a server of the backend, from when they are sent to the answer.", []string{"server"}, nil)
	diskFreeDesc = prometheus.NewDesc("attune_disk_free_bytes", "Room on the disk of a directory that this node writes to.", []string{"dir"}, nil)
	diskKeepDesc = prometheus.NewDesc("attune_disk_reserve_bytes", "With less room than that, writes are refused.", []string{"dir"}, nil)
	readyDesc    = prometheus.NewDesc("attune_ready", "1 if the node serves its level.", nil, nil)
	reloadDesc   = prometheus.NewDesc("attune_config_reload_ok", "1 if the settings were taken over when they were last read, 0 if those of before stay in use.", nil, nil)
	reloadAtDesc = prometheus.NewDesc("attune_config_reload_time_seconds", "When the settings were last read, in unix time; the first time is the start.", nil, nil)
	tracesDesc   = prometheus.NewDesc("attune_traces_total", "Traces made for the collector at trace-endpoint: sent, or dropped because it did not take them.", []string{"result"}, nil)
	logDropDesc  = prometheus.NewDesc("attune_log_dropped_total", "Lines of the log that were not written because too many said the same; see log-sample.", nil, nil)
	faultDesc    = prometheus.NewDesc("attune_fault_active", "Faults of the network and the clock that were injected and are not over; see attune fault.", nil, nil)
	infoDesc     = prometheus.NewDesc("attune_info", "Always 1; the labels describe the node.", []string{"name", "version", "level"}, nil)
)

// Describe sends nothing: the collector is unchecked, since its backend figures
// depend on the backend.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	n := c.n
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	t := n.totals()
	for i, s := range series {
		count(s.desc, float64(t.n[i]), s.labels...)
	}
	for i, name := range classNames {
		out <- n.latency(class(i), name)
	}
	gauge(connsDesc, float64(n.curConns.Load()))
	gauge(connsMaxDesc, float64(n.inUse().MaxConns))
	count(connsAllDesc, float64(n.totalConns.Load()))
	count(connsNoDesc, float64(n.rejectedConns.Load()))
	r := n.replicaStats()
	gauge(itemsDesc, float64(r.Items))
	gauge(memoryDesc, float64(r.IndexBytes), "index")
	gauge(memoryDesc, float64(r.UsedBytes-r.IndexBytes), "values")
	gauge(limitDesc, float64(n.inUse().MemoryLimit))
	count(goneDesc, float64(r.Evicted), "evicted")
	count(goneDesc, float64(r.Expired), "expired")
	count(lostDesc, float64(r.Gone-r.Strange), "missing")
	count(lostDesc, float64(r.Strange), "stale")
	if n.remote() {
		count(damageDesc, float64(r.Damages))
		gauge(hotDesc, float64(r.HotBytes))
		count(hotReadsDesc, float64(r.HotHits), "hit")
		count(hotReadsDesc, float64(r.HotMisses), "miss")
		count(hotGoneDesc, float64(r.HotEvicted))
	}
	for _, st := range n.backendStats() {
		gauge(backendDesc, float64(st.Value), st.Name)
	}
	for _, server := range n.fleetServers() {
		up := 1.0
		if server.Down {
			up = 0
		}
		gauge(serverUpDesc, up, server.Addr)
		count(serverNoDesc, float64(server.Errors), server.Addr)
		out <- histogram(serverDesc, server.Latency.Buckets[:], server.Latency.Sum.Seconds(), server.Addr)
	}
	if n.room != nil {
		for _, d := range n.room.Disks() {
			gauge(diskFreeDesc, float64(d.Free), d.Dir)
			gauge(diskKeepDesc, float64(d.Reserve), d.Dir)
		}
	}
	ready := 1.0
	if n.Ready() != nil {
		ready = 0
	}
	gauge(readyDesc, ready)
	last, ok := n.reloads.get(), 1.0
	if last.Error != "" {
		ok = 0
	}
	gauge(reloadDesc, ok)
	gauge(reloadAtDesc, float64(last.Time.UnixMilli())/1e3)
	count(tracesDesc, float64(n.traceCounts.Sent.Load()), "sent")
	count(tracesDesc, float64(n.traceCounts.Dropped.Load()), "dropped")
	count(logDropDesc, float64(n.logSample.dropped.Load()))
	gauge(faultDesc, float64(len(n.faults())))
	n.collectCluster(count, gauge)
	gauge(infoDesc, 1, n.cfg.Name, n.cfg.Version, n.cfg.Level.String())
}

// latency adds up one class's histogram over the stripes.
func (n *Node) latency(c class, name string) prometheus.Metric {
	var perBucket [latencyBuckets]uint64
	var sum uint64
	for i := range n.stripes {
		h := &n.stripes[i].latency[c]
		for b := range perBucket {
			perBucket[b] += h.buckets[b].Load()
		}
		sum += h.sum.Load()
	}
	return histogram(durationDesc, perBucket[:], float64(sum)/1e9, name)
}

// histogram shows buckets as counters and kvadapter.Latency have them: up to 2^i
// microseconds, the last one everything.
func histogram(d *prometheus.Desc, perBucket []uint64, sum float64, label string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(perBucket)-1)
	var total uint64
	for b, count := range perBucket {
		total += count
		if b < len(perBucket)-1 {
			buckets[float64(uint64(1)<<b)/1e6] = total
		}
	}
	return prometheus.MustNewConstHistogram(d, total, sum, buckets, label)
}

// totals is the sum of all stripes.
type totals struct{ n [numCounters]uint64 }

func (n *Node) totals() totals {
	var t totals
	for s := range n.stripes {
		for i := range t.n {
			t.n[i] += n.stripes[s].n[i].Load()
		}
	}
	return t
}

// backendStats lists the figures of all backends, added up by name.
func (n *Node) backendStats() []kvadapter.Stat {
	var all []kvadapter.Stat
	for _, sh := range n.shards {
		st, ok := sh.backend.(kvadapter.Statter)
		if !ok {
			continue
		}
	next:
		for _, s := range st.Stats() {
			for i := range all {
				if all[i].Name == s.Name {
					all[i].Value += s.Value
					continue next
				}
			}
			all = append(all, s)
		}
	}
	return all
}
