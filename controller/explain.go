package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/cluster"
	"github.com/attunekv/attune/replica"
)

// callExplain asks another controller what it has of a key: the key, answered by a
// keyCopy as JSON. Engines have the kinds below.
const callExplain byte = 8 * cluster.MinKind

const (
	// explainPatience is how long a controller and its store may take to tell what
	// they have.
	explainPatience = 2 * time.Second
	maxKey          = 250
)

// explanation is what the controllers have of a key, and what a get of it comes to.
type explanation struct {
	Key        string    `json:"key"`
	Level      string    `json:"level"`
	Controller string    `json:"controller"`
	Shard      int       `json:"shard"` // from 1
	Shards     int       `json:"shards"`
	Leader     string    `json:"leader,omitempty"` // at levels that have one
	Home       string    `json:"home,omitempty"`   // at the others
	Copies     []keyCopy `json:"copies"`           // by name
	Get        string    `json:"get"`              // what it does at the controller asked: hit, miss, refused
	Why        string    `json:"why"`

	forgets bool // bytes that cannot be found are a miss: see gossip.Engine.Find
}

// keyCopy is what one controller has of a key, or why it does not say.
type keyCopy struct {
	Controller string         `json:"controller"`
	Error      string         `json:"error,omitempty"`
	State      replica.State  `json:"state,omitempty"`
	Version    attune.Version `json:"version,string,omitempty"`
	Changed    int64          `json:"changed_ms,omitempty"` // when, as its version says: unix
	Stored     attune.Version `json:"stored,string,omitempty"`
	CAS        uint64         `json:"cas,string,omitempty"`
	Size       int            `json:"size"`
	Flags      uint32         `json:"flags"`
	Expires    int64          `json:"expires_ms,omitempty"` // unix
	TTL        int64          `json:"ttl_ms,omitempty"`     // by that controller's clock; negative: expired
	Stale      bool           `json:"stale,omitempty"`
	Bytes      replica.Where  `json:"bytes,omitempty"`
	StoreError string         `json:"store_error,omitempty"`
}

// serveExplain answers GET /explain?key=...
func (n *Node) serveExplain(w http.ResponseWriter, r *http.Request) {
	key := r.URL.Query().Get("key")
	if len(key) == 0 || len(key) > maxKey {
		http.Error(w, fmt.Sprintf("say which key: /explain?key=..., of 1 to %d bytes", maxKey), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*explainPatience)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	answerJSON(w, n.explain(ctx, []byte(key)))
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // who asked is gone
}

// explain asks all controllers for what they have of a key, this one first: behind
// the barrier of a read that begins now.
func (n *Node) explain(ctx context.Context, text []byte) *explanation {
	key := attune.Key{Text: text}
	sh := n.route(&key)
	x := &explanation{
		Key: string(text), Level: n.cfg.Level.String(), Controller: n.cfg.Name,
		Shard: slices.Index(n.shards, sh) + 1, Shards: len(n.shards),
	}
	if g, ok := n.group(); ok {
		x.Leader = g.Status().Leader
	} else if g, ok := n.gossiping(); ok {
		x.Home, x.forgets = g.Home(key.Hash), sh.replica.Forgets()
	}
	barred, cancel := context.WithTimeoutCause(ctx, explainPatience, errors.New("the level cannot be kept now: its barrier takes too long"))
	refused := n.barrier(barred, sh, attune.Session{})
	cancel()
	own := n.copyOf(ctx, text)
	x.Copies = append(n.copiesElsewhere(ctx, text), own)
	slices.SortFunc(x.Copies, func(a, b keyCopy) int { return cmp.Compare(a.Controller, b.Controller) })
	x.judge(refused)
	return x
}

// copyOf is what this controller has of a key.
func (n *Node) copyOf(ctx context.Context, text []byte) keyCopy {
	ctx, cancel := context.WithTimeoutCause(ctx, explainPatience, errors.New("the store does not answer"))
	defer cancel()
	key := attune.Key{Text: text}
	sh := n.route(&key)
	l := sh.replica.Look(ctx, key)
	c := keyCopy{
		Controller: n.cfg.Name, State: l.State, Bytes: l.Bytes,
		Version: l.Item.Version, Stored: l.Item.Stored, CAS: l.Item.CAS, Size: l.Item.Size, Flags: l.Item.Flags,
		Expires: l.Item.Expires, Stale: l.Item.Stale,
	}
	if c.Version != 0 {
		c.Changed = changedAt(c.Version)
	}
	if c.Expires != 0 {
		c.TTL = c.Expires - sh.engine.Now()
	}
	if l.Err != nil {
		c.StoreError = l.Err.Error()
	}
	return c
}

// changedAt is the unix millisecond that a version was issued in.
func changedAt(v attune.Version) int64 { return int64(v>>22) + 1577836800000 }

// explainOthers answers what other controllers ask.
func (n *Node) explainOthers(c *cluster.Cluster) {
	c.HandleCall(callExplain, func(ctx context.Context, _ uint64, key []byte) ([]byte, error) {
		if len(key) == 0 || len(key) > maxKey {
			return nil, fmt.Errorf("a key has 1 to %d bytes", maxKey)
		}
		if n.health.Load() == nil {
			return nil, n.opening()
		}
		return json.Marshal(n.copyOf(ctx, key))
	}, cluster.Limit(maxKey))
}

// copiesElsewhere asks the other controllers, all at once.
func (n *Node) copiesElsewhere(ctx context.Context, key []byte) []keyCopy {
	c := n.cluster.Load()
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, explainPatience, errors.New("no answer in time"))
	defer cancel()
	var own uint64
	members := c.Members()
	for _, m := range members {
		if m.Self {
			own = m.Cluster
		}
	}
	members = slices.DeleteFunc(members, func(m cluster.Member) bool { return m.Self || m.Left || m.Cluster != own })
	copies := make([]keyCopy, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		copies[i] = keyCopy{Controller: m.Name, Error: "failed: the others cannot reach it"}
		if !m.Alive {
			continue
		}
		wait.Go(func() {
			var told keyCopy
			answer, err := c.Call(ctx, m.ID, callExplain, slices.Clone(key))
			if err == nil {
				err = json.Unmarshal(answer, &told)
			}
			if err != nil {
				told = keyCopy{Error: err.Error()}
			}
			told.Controller = m.Name
			copies[i] = told
		})
	}
	wait.Wait()
	return copies
}

// serves reports whether its bytes can be had from there at once.
func (c *keyCopy) serves() bool {
	switch c.Bytes {
	case replica.InMemory, replica.Staged, replica.InHot, replica.InStore:
		return true
	}
	return false
}

// judge says what a get at the controller asked comes to, and why. refused is why
// its barrier failed, if it did.
func (x *explanation) judge(refused error) {
	var own *keyCopy
	var holder, newer, silent string // of the others
	for i := range x.Copies {
		if x.Copies[i].Controller == x.Controller {
			own = &x.Copies[i]
		}
	}
	for i := range x.Copies {
		switch c := &x.Copies[i]; {
		case c == own:
		case c.Error != "":
			silent = c.Controller
		default:
			if c.Stored == own.Stored && c.serves() && holder == "" {
				holder = c.Controller
			}
			if c.Version > own.Version && newer == "" {
				newer = c.Controller
			}
		}
	}
	x.Get, x.Why = own.judge(holder, silent, x.forgets)
	if refused != nil {
		x.Get, x.Why = "refused", refused.Error()
		return
	}
	if newer != "" {
		x.Why += fmt.Sprintf("; %s has a newer version, which was not here yet when this controller was asked", newer)
	}
}

// judge is what a get comes to where this is the copy. holder is another controller
// that has the same bytes, silent one that does not answer, if there are such.
func (c *keyCopy) judge(holder, silent string, forgets bool) (get, why string) {
	version := fmt.Sprintf("version %d", c.Version)
	switch c.State {
	case replica.Absent:
		return "miss", "there is no such key here: it was never stored, or is gone and forgotten"
	case replica.Deleted:
		return "miss", fmt.Sprintf("it was deleted %s ago; that is remembered until all controllers have heard of it", age(c.Changed))
	case replica.Evicted:
		return "miss", version + " was evicted: there was no room for it, or its bytes were lost"
	case replica.Flushed:
		return "miss", "flush_all killed " + version
	case replica.Freed:
		return "miss", "it expired, and its bytes were cleared away"
	}
	switch {
	case c.Expires != 0 && c.TTL <= 0:
		return "miss", fmt.Sprintf("it expired %v ago", time.Duration(-c.TTL)*time.Millisecond)
	case c.Bytes == replica.InMemory:
		return "hit", version + " is here, in memory"
	case c.Bytes == replica.Staged:
		return "hit", version + " is here, in memory, on its way to the store"
	case c.Bytes == replica.InHot:
		return "hit", version + " is here, among the values that are read often"
	case c.Bytes == replica.InStore:
		return "hit", version + " is here, and the store has its bytes"
	}
	lack := "the store lacks its bytes"
	if c.Bytes == replica.Unknown {
		lack = "the store does not give its bytes: " + c.StoreError
	}
	switch {
	case holder != "":
		return "hit", fmt.Sprintf("%s is here; %s, so they come from %s", version, lack, holder)
	case c.Bytes == replica.Unknown:
		return "refused", fmt.Sprintf("%s is here; %s; and no other controller has them", version, lack)
	case silent != "":
		if get = "refused"; forgets {
			get = "miss"
		}
		return get, fmt.Sprintf("%s is here; %s, and so do the others that answer; %s may have them", version, lack, silent)
	}
	return "miss", fmt.Sprintf("%s is here; %s, and nobody else has them", version, lack)
}

// age is how long ago something was, in round figures.
func age(unixMilli int64) time.Duration {
	return max(time.Since(time.UnixMilli(unixMilli)).Round(time.Millisecond), 0)
}
