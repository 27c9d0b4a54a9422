package controller

import (
	"fmt"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/protocol"
	"github.com/attunekv/attune/replica"
)

// stats answers the stats command. The names are memcached's where it has one,
// because memcached_exporter, memcached-tool and dashboards go by them; a
// figure that would mean nothing here is left out, not invented.
func (s *session) stats(r *protocol.Request) {
	n := s.node
	section := ""
	if len(r.Args) > 0 {
		section = string(r.Args[0])
	}
	emit := func(name string, value any) {
		s.out.grew(r.AppendStat(s.out.buf, name, fmt.Sprint(value)))
	}
	switch section {
	case "":
		// What this session counted and has not told yet belongs to it.
		s.tally.flushCounts(s.counts)
		n.generalStats(emit)
	case "settings":
		n.settingStats(emit)
	case "items":
		n.itemStats(emit)
	case "slabs":
		n.slabStats(emit)
	case "conns":
		n.connStats(emit)
	case "sizes":
		// A walk over all items must not hold up other connections.
		s.detached = func(line func([]byte) error) error { return n.sizeStats(r, line) }
		return
	case "reset":
		s.tally.flushCounts(s.counts)
		t := n.totals()
		n.resetAt.Store(&t)
		s.out.grew(r.AppendText(s.out.buf, "RESET"))
		return
	case "detail":
		s.out.grew(r.AppendText(s.out.buf, detailReply(r.Args[1:])))
		return
	case "attune":
		for _, st := range n.backendStats() {
			emit("backend_"+st.Name, st.Value)
		}
		r := n.replicaStats()
		emit("backend_missing", r.Gone-r.Strange)
		emit("backend_stale", r.Strange)
		if n.remote() {
			emit("hot_bytes", r.HotBytes)
			emit("hot_hits", r.HotHits)
			emit("hot_misses", r.HotMisses)
			emit("hot_evictions", r.HotEvicted)
		}
		for _, v := range n.fleetServers() {
			emit("fleet_"+v.Addr, fleetLine(&v))
		}
		emit("level", n.cfg.Level)
		emit("name", n.cfg.Name)
		emit("admin", orNone(n.adminStat()))
		if err := n.full(); err != nil {
			emit("writes_refused", err)
		}
		n.clusterStats(emit)
	default:
		s.out.grew(r.AppendText(s.out.buf, "ERROR"))
		return
	}
	s.out.grew(r.AppendStatEnd(s.out.buf))
}

// detailReply answers `stats detail`, which memcached uses to count per key
// prefix. Nothing is counted, so a dump is empty.
func detailReply(args [][]byte) string {
	if len(args) == 1 {
		switch string(args[0]) {
		case "on", "off":
			return "OK"
		case "dump":
			return "END"
		}
	}
	return "CLIENT_ERROR usage: stats detail on|off|dump"
}

func (n *Node) generalStats(emit func(string, any)) {
	now := time.Now()
	emit("pid", os.Getpid())
	emit("uptime", int64(now.Sub(n.started)/time.Second))
	emit("time", n.wall().Unix())
	emit("version", wireVersion)
	emit("attune_version", n.cfg.Version)
	emit("pointer_size", strconv.IntSize)
	user, system := rusage()
	emit("rusage_user", user)
	emit("rusage_system", system)
	emit("max_connections", n.inUse().MaxConns)
	emit("curr_connections", n.curConns.Load())
	emit("total_connections", n.totalConns.Load())
	emit("rejected_connections", n.rejectedConns.Load())
	emit("connection_structures", n.curConns.Load())
	t, since := n.totals(), n.resetAt.Load()
	for i, name := range counterNames {
		emit(name, t.n[i]-since.n[i])
	}
	emit("get_flushed", 0) // a flushed item is a plain miss
	emit("auth_cmds", 0)
	emit("auth_errors", 0)
	emit("limit_maxbytes", n.inUse().MemoryLimit)
	accepting := 1
	if n.draining.Load() {
		accepting = 0
	}
	emit("accepting_conns", accepting)
	emit("listen_disabled_num", 0)
	emit("time_in_listen_disabled_us", 0)
	emit("threads", n.cfg.threads())
	emit("conn_yields", 0)
	r := n.replicaStats()
	emit("hash_bytes", r.IndexBytes)
	emit("bytes", r.UsedBytes)
	emit("curr_items", r.Items)
	emit("total_items", r.Stored)
	emit("expired_unfetched", r.ExpiredUnfetched)
	emit("evicted_unfetched", r.EvictedUnfetched)
	emit("evictions", r.Evicted)
	emit("reclaimed", r.Expired)
	emit("malloc_fails", 0)
	emit("consistency", n.cfg.Level)
}

func (n *Node) settingStats(emit func(string, any)) {
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	emit("maxbytes", n.inUse().MemoryLimit)
	emit("maxconns", n.inUse().MaxConns)
	for _, a := range n.Addrs() {
		if network, address := splitAddr(a); network == "unix" {
			emit("domain_socket", address)
		} else {
			emit("inter", address)
		}
	}
	emit("verbosity", 0)
	emit("evictions", "on")
	emit("num_threads", n.cfg.threads())
	emit("cas_enabled", "yes")
	emit("binding_protocol", "auto-negotiate")
	emit("auth_enabled_sasl", "no")
	emit("auth_enabled_ascii", "no")
	emit("item_size_max", n.inUse().MaxItemSize)
	emit("maxconns_fast", "yes")
	emit("flush_enabled", yes(!n.inUse().DisableFlush))
	emit("shutdown_command", yes(n.inUse().EnableShutdown))
	emit("dump_enabled", "yes")
	emit("hash_algorithm", "xxh3")
	emit("idle_timeout", int64(n.inUse().IdleTimeout/time.Second))
	emit("consistency", n.cfg.Level)
	emit("backend", n.inUse().Backend)
	if n.remote() {
		emit("hot_cache", n.inUse().HotCache)
	}
	emit("op_timeout", n.inUse().OpTimeout)
	emit("drain_timeout", n.inUse().DrainTimeout)
	emit("name", n.cfg.Name)
	if n.cluster.Load() == nil {
		return
	}
	emit("peer", n.cfg.Peer)
	emit("peer_advertise", orNone(n.cfg.PeerAdvertise))
	emit("gossip", n.cfg.Gossip)
	emit("join", orNone(strings.Join(n.cfg.Join, ",")))
	emit("expect", n.cfg.Expect)
	emit("data_dir", orNone(n.cfg.DataDir))
	emit("sync", n.cfg.Sync)
	if _, ok := n.gossiping(); ok {
		emit("write_acks", acksOf(n.inUse().WriteAcks))
		emit("max_skew", n.inUse().MaxSkew)
		emit("tombstone_max_age", n.inUse().TombstoneMaxAge)
	}
}

// itemStats and slabStats speak of one class, number 1, that holds everything:
// the store's own size classes are not memcached's, and sum up to this.
func (n *Node) itemStats(emit func(string, any)) {
	r, t, since := n.replicaStats(), n.totals(), n.resetAt.Load()
	if r.Items == 0 {
		return
	}
	for _, st := range []struct {
		name  string
		value any
	}{
		{"number", r.Items},
		{"mem_requested", r.UsedBytes},
		{"evicted", r.Evicted},
		{"evicted_unfetched", r.EvictedUnfetched},
		{"expired_unfetched", r.ExpiredUnfetched},
		{"outofmemory", t.n[storeNoMemory] - since.n[storeNoMemory]},
		{"reclaimed", r.Expired},
	} {
		emit("items:1:"+st.name, st.value)
	}
}

func (n *Node) slabStats(emit func(string, any)) {
	r, t, since := n.replicaStats(), n.totals(), n.resetAt.Load()
	used := r.UsedBytes
	active := 0
	if r.Items > 0 {
		active = 1
		emit("1:chunk_size", used/r.Items)
		emit("1:chunks_per_page", 1)
		emit("1:total_pages", r.Items)
		emit("1:total_chunks", r.Items)
		emit("1:used_chunks", r.Items)
		emit("1:free_chunks", 0)
		emit("1:free_chunks_end", 0)
		emit("1:mem_requested", used)
		for _, c := range []counter{getHits, cmdSet, deleteHits, incrHits, decrHits, casHits, casBadval, touchHits} {
			emit("1:"+counterNames[c], t.n[c]-since.n[c])
		}
	}
	emit("active_slabs", active)
	emit("total_malloced", used)
}

func (n *Node) connStats(emit func(string, any)) {
	n.mu.Lock()
	ids := make([]uint64, 0, len(n.conns))
	for id := range n.conns {
		ids = append(ids, id)
	}
	n.mu.Unlock()
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	now := time.Now().Unix()
	for _, id := range ids {
		n.mu.Lock()
		c := n.conns[id]
		n.mu.Unlock()
		if c == nil {
			continue
		}
		p := strconv.FormatUint(id, 10)
		emit(p+":addr", c.remote)
		emit(p+":listen_addr", c.local)
		emit(p+":state", "conn_read")
		emit(p+":secs_since_last_cmd", max(0, now-c.active.Load()))
	}
}

// sizeStats walks all items for a histogram of their sizes in steps of 32
// bytes, as `stats sizes` has it.
func (n *Node) sizeStats(r *protocol.Request, line func([]byte) error) error {
	sizes := make(map[int]int)
	for _, sh := range n.shards {
		err := sh.replica.Scan(n.ctx, func(key []byte, it attune.Item) bool {
			sizes[(len(key)+it.Size+31)/32*32]++
			return true
		})
		if err != nil {
			return line(r.AppendError(nil, err.Error()))
		}
	}
	steps := make([]int, 0, len(sizes))
	for size := range sizes {
		steps = append(steps, size)
	}
	sort.Ints(steps)
	var buf []byte
	for _, size := range steps {
		buf = r.AppendStat(buf[:0], strconv.Itoa(size), strconv.Itoa(sizes[size]))
		if err := line(buf); err != nil {
			return err
		}
	}
	return line(r.AppendStatEnd(nil))
}

// dump answers `stats cachedump CLASS LIMIT`, `lru_crawler metadump` and
// `lru_crawler mgdump`.
func (s *session) dump(r *protocol.Request) {
	n := s.node
	limit := -1
	form, end := appendMetadump, "END\r\n"
	switch string(r.Args[0]) {
	case "cachedump": // the parser saw to it that these are numbers
		class, _ := strconv.ParseUint(string(r.Args[1]), 10, 32)
		most, _ := strconv.ParseUint(string(r.Args[2]), 10, 32)
		if form = appendCachedump; class != 1 {
			limit = 0
		} else if most > 0 {
			limit = int(most)
		}
	case "mgdump":
		form, end = appendMgdump, "EN\r\n"
	}
	s.detached = func(line func([]byte) error) error {
		now := n.now()
		var buf []byte
		var failed error
		for _, sh := range n.shards {
			if limit == 0 {
				break
			}
			err := sh.replica.Scan(n.ctx, func(key []byte, it attune.Item) bool {
				if !it.Live(now) {
					return true
				}
				buf = form(buf[:0], key, &it)
				failed = line(buf)
				limit--
				return failed == nil && limit != 0
			})
			if failed != nil {
				return failed
			}
			if err != nil {
				return line(r.AppendError(nil, err.Error()))
			}
		}
		return line([]byte(end))
	}
}

func appendCachedump(dst, key []byte, it *attune.Item) []byte {
	dst = append(append(dst, "ITEM "...), key...)
	dst = strconv.AppendInt(append(dst, " ["...), int64(it.Size), 10)
	dst = strconv.AppendInt(append(dst, " b; "...), it.Expires/1000, 10)
	return append(dst, " s]\r\n"...)
}

func appendMgdump(dst, key []byte, _ *attune.Item) []byte {
	return append(appendEscaped(append(dst, "mg "...), key), '\r', '\n')
}

// appendEscaped appends key as it stands in a URL, as memcached does in dumps.
func appendEscaped(dst, key []byte) []byte {
	for _, c := range key {
		if c > ' ' && c < 0x7f && c != '%' && c != '=' && c != '+' && c != '&' && c != '"' {
			dst = append(dst, c)
		} else {
			const hex = "0123456789ABCDEF"
			dst = append(dst, '%', hex[c>>4], hex[c&15])
		}
	}
	return dst
}

func appendMetadump(dst, key []byte, it *attune.Item) []byte {
	dst = appendEscaped(append(dst, "key="...), key)
	exp := int64(-1)
	if it.Expires != 0 {
		exp = it.Expires / 1000
	}
	dst = strconv.AppendInt(append(dst, " exp="...), exp, 10)
	dst = strconv.AppendInt(append(dst, " la="...), it.Accessed, 10)
	dst = strconv.AppendUint(append(dst, " cas="...), it.CAS, 10)
	fetch := "no"
	if it.Fetched {
		fetch = "yes"
	}
	dst = append(append(dst, " fetch="...), fetch...)
	dst = strconv.AppendInt(append(dst, " cls=1 size="...), int64(len(key)+it.Size), 10)
	return append(dst, '\r', '\n')
}

// shutdown stops the node if clients may.
func (s *session) shutdown(r *protocol.Request) {
	n := s.node
	if !n.inUse().EnableShutdown {
		s.out.grew(r.AppendText(s.out.buf, "SERVER_ERROR: shutdown not enabled"))
		return
	}
	s.closing = true
	s.n = s.next + 1
	n.stopOnce.Do(func() { close(n.stop) })
}

// remote reports whether a backend is outside this process.
func (n *Node) remote() bool {
	return slices.ContainsFunc(n.shards, func(sh *shard) bool { return sh.remote })
}

// replicaStats adds up the replicas of all shards.
func (n *Node) replicaStats() replica.Stats {
	var sum replica.Stats
	for _, sh := range n.shards {
		sum.Add(sh.replica.Stats())
	}
	return sum
}
