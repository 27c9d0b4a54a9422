package controller

import (
	"compress/gzip"
	"embed"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/kvadapter"
)

//go:embed web
var webFiles embed.FS

// webPolicy lets the page load what this controller serves, and nothing else: no
// script within it runs, whatever a name or a line of the log may contain.
const webPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// handleWeb serves the page for people, and what it shows as JSON: /api/node is this
// controller, /api/cluster all of them, as this one reaches them.
func (n *Node) handleWeb(mux *http.ServeMux, a *adminServer) {
	file := func(pattern, name string) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Security-Policy", webPolicy)
			h.Set("X-Content-Type-Options", "nosniff")
			h.Set("Referrer-Policy", "no-referrer")
			h.Set("Cache-Control", "no-cache") // the next release has another page
			http.ServeFileFS(w, r, webFiles, "web/"+name)
		})
	}
	file("/{$}", "index.html")
	for _, name := range []string{"page.js", "charts.js", "page.css", "icon.svg"} {
		file("/web/"+name, name)
	}
	mux.HandleFunc("GET /api/node", a.whileOpen(func(w http.ResponseWriter, r *http.Request) {
		answerView(w, r, encode(n.view()))
	}))
	mux.HandleFunc("GET /api/cluster", a.whileOpen(func(w http.ResponseWriter, r *http.Request) {
		answerView(w, r, a.peers.view())
	}))
}

// answerView sends what a page asks for every other second, and other controllers each
// second: compressed, if they know how to read that.
func answerView(w http.ResponseWriter, r *http.Request, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if !acceptsGzip(r.Header.Get("Accept-Encoding")) {
		_, _ = w.Write(body) // who does not read it has gone
		return
	}
	h.Set("Content-Encoding", "gzip")
	packed := gzip.NewWriter(w)
	_, _ = packed.Write(body)
	_ = packed.Close()
}

// acceptsGzip reads an Accept-Encoding header.
func acceptsGzip(header string) bool {
	for part := range strings.SplitSeq(header, ",") {
		name, quality, _ := strings.Cut(part, ";")
		if strings.TrimSpace(name) == "gzip" {
			_, zero, _ := strings.Cut(quality, "=")
			return zero == "" || strings.Trim(zero, " 0.") != ""
		}
	}
	return false
}

// encode is for values made of what JSON has.
func encode(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return body
}

// nodeView is what /api/node tells: this controller, and the others as it sees them.
type nodeView struct {
	Name        string       `json:"name"`
	Version     string       `json:"version"`
	Level       string       `json:"level"`
	Health      string       `json:"health"` // why the level is not served; empty: it is
	Now         int64        `json:"now"`    // unix milliseconds
	Uptime      int64        `json:"uptime"` // seconds
	Listen      []string     `json:"listen"`
	Connections int64        `json:"connections"`
	Members     []memberInfo `json:"members"` // this one included; none if it is alone
	Ordered     *orderedView `json:"ordered,omitempty"`
	Gossip      *gossipView  `json:"gossip,omitempty"`

	Items        int64       `json:"items"`
	MemoryUsed   int64       `json:"memory_used"`  // bytes
	MemoryLimit  int64       `json:"memory_limit"` // bytes; 0 is none
	Evicted      uint64      `json:"evicted"`
	Backend      string      `json:"backend"`
	BackendStats []statView  `json:"backend_stats"`
	Stores       []storeView `json:"stores"` // servers of the backend
	Repairs      *repairView `json:"repairs,omitempty"`
	Disks        []diskView  `json:"disks"`

	SampledAt []int64             `json:"sampled_at"` // unix milliseconds, the oldest first
	Samples   map[string][]figure `json:"samples"`    // see figureNames; null is none
	Events    []event             `json:"events"`     // the newest first
}

type orderedView struct {
	Role       string `json:"role"`
	Leader     string `json:"leader"` // empty if none is known
	Term       uint64 `json:"term"`
	Commit     uint64 `json:"commit"`
	Applied    uint64 `json:"applied"`
	Voters     int    `json:"voters"`
	Pending    int    `json:"pending"`
	Leaderless int64  `json:"leaderless"` // milliseconds
	Refused    uint64 `json:"refused"`    // changes that did not hold
}

type gossipView struct {
	Skew       int64  `json:"skew"` // milliseconds
	Tombstones int    `json:"tombstones"`
	Waits      string `json:"waits"` // why the dead are not forgotten; empty: they are
	HeldBack   int    `json:"held_back"`
	Reconciles uint64 `json:"reconciles"`
	Differing  uint64 `json:"differing"` // keys, in the last of them
	TooFar     uint64 `json:"too_far_ahead"`
}

type statView struct {
	Name  string `json:"name"`
	Value int64  `json:"value"`
}

type storeView struct {
	Server string `json:"server"`
	Down   bool   `json:"down"`
	Errors int64  `json:"errors"`
	P50    figure `json:"p50"` // milliseconds, of the last sample
	P99    figure `json:"p99"`
}

type repairView struct {
	Waiting  int64  `json:"waiting"` // bytes on their way to the store
	NotTaken int64  `json:"not_taken"`
	Asked    int64  `json:"asked"`
	Repaired int64  `json:"repaired"`
	FillFrom string `json:"fill_from"` // empty: it is not being filled
	Looked   int64  `json:"fill_looked"`
	Of       int64  `json:"fill_of"`
	Lacking  int64  `json:"fill_lacking"`
	Filled   int64  `json:"filled"`
}

type diskView struct {
	Dir     string `json:"dir"`
	Free    uint64 `json:"free"` // bytes
	Total   uint64 `json:"total"`
	Reserve uint64 `json:"reserve"` // with less free, writes are refused
}

// view is the node now. Before it has found its place there is little to tell.
func (n *Node) view() nodeView {
	now := time.Now()
	v := nodeView{
		Name: n.cfg.Name, Version: n.cfg.Version, Level: n.cfg.Level.String(),
		Now: now.UnixMilli(), Uptime: int64(now.Sub(n.started) / time.Second),
		Listen: n.cfg.Listen, Connections: n.curConns.Load(),
		MemoryLimit: n.inUse().MemoryLimit, Backend: n.inUse().Backend, Events: n.events.list(),
	}
	if err := n.Ready(); err != nil {
		v.Health = err.Error()
	}
	v.SampledAt, v.Samples = n.samples.columns()
	if n.health.Load() == nil { // there is no engine yet
		if c := n.cluster.Load(); c != nil {
			for _, m := range c.Members() {
				v.Members = append(v.Members, memberInfo{Name: m.Name, State: stateOf(m), Listen: m.Listen, Admin: m.Admin})
			}
		}
		return v
	}
	v.Members = n.members()
	if g, ok := n.group(); ok {
		v.Ordered = orderedViewOf(g.Status())
	} else if s, ok := n.gossiping(); ok {
		v.Gossip = gossipViewOf(s.Status())
	}
	r := n.replicaStats()
	v.Items, v.MemoryUsed, v.Evicted = int64(r.Items), int64(r.UsedBytes), uint64(r.Evicted)
	for _, st := range n.backendStats() {
		v.BackendStats = append(v.BackendStats, statView{st.Name, st.Value})
	}
	v.Stores = n.samples.newestStores(n.fleetServers())
	if st, ok := n.repairs(); ok {
		v.Repairs = &repairView{
			Waiting: st.Waiting, NotTaken: st.Lost, Asked: st.Asked, Repaired: st.Found,
			FillFrom: st.Fill.From, Looked: st.Fill.Looked, Of: st.Fill.Of, Lacking: st.Fill.Lacking, Filled: st.Fill.Fetched,
		}
	}
	if n.room != nil {
		for _, d := range n.room.Disks() {
			v.Disks = append(v.Disks, diskView(d))
		}
	}
	return v
}

// newestStores is how servers are now, with the latencies of the newest sample.
func (s *samples) newestStores(servers []kvadapter.Server) (all []storeView) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, server := range servers {
		v := storeView{Server: server.Addr, Down: server.Down, Errors: server.Errors, P50: none, P99: none}
		for _, sampled := range s.stores {
			if sampled.Server == server.Addr {
				v.P50, v.P99 = sampled.P50, sampled.P99
			}
		}
		all = append(all, v)
	}
	return all
}

func orderedViewOf(st consistency.Status) *orderedView {
	return &orderedView{
		Role: st.Role, Leader: st.Leader, Term: st.Term, Commit: st.Commit, Applied: st.Applied, Voters: st.Voters,
		Pending: st.Pending, Leaderless: st.Leaderless.Milliseconds(), Refused: st.Refused,
	}
}

func gossipViewOf(st consistency.GossipStatus) *gossipView {
	return &gossipView{
		Skew: st.Skew.Milliseconds(), Tombstones: st.Tombstones, Waits: st.Waits, HeldBack: st.Held,
		Reconciles: st.Reconciles, Differing: st.Differing, TooFar: st.TooFar,
	}
}
