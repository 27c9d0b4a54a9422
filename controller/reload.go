package controller

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/kvadapter"
)

// Setting is one of the operator's choices, as /config shows it.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"` // in use
	// From is where Value was found: a flag, a variable of the environment, a line of
	// the file, or default.
	From string `json:"from"`
	// Reloads says that it can change while the controller runs.
	Reloads bool `json:"reloads"`
	// Waiting is another value that was found since, and takes a restart.
	Waiting string `json:"waiting,omitempty"`
}

// inUse is the configuration that commands go by: that of Open, or of the newest
// Reconfigure. It is never modified; who needs two values of it asks once.
func (n *Node) inUse() *Config { return n.conf.Load() }

// adopt takes over from next what can change while a node runs.
func (c *Config) adopt(next *Config) {
	c.Backend, c.RepairRate, c.MemoryLimit, c.HotCache = next.Backend, next.RepairRate, next.MemoryLimit, next.HotCache
	c.MaxItemSize, c.MaxConns = next.MaxItemSize, next.MaxConns
	c.IdleTimeout, c.OpTimeout, c.DrainTimeout = next.IdleTimeout, next.OpTimeout, next.DrainTimeout
	c.WriteAcks, c.MaxSkew, c.TombstoneMaxAge = next.WriteAcks, next.MaxSkew, next.TombstoneMaxAge
	c.DisableFlush, c.EnableShutdown = next.DisableFlush, next.EnableShutdown
	c.TraceEndpoint, c.TraceSample, c.LogSample = next.TraceEndpoint, next.TraceSample, next.LogSample
	c.AdminTokenFile, c.Settings = next.AdminTokenFile, next.Settings
}

// Reconfigure goes over to what of next can change while the node serves; the rest
// of it stays as it was opened. On error nothing has changed: next makes no sense
// with that, or has another kind of backend. Of the backend it is servers and options
// that change: commands under way end where they began, and values that are sought on
// another server now are misses of this store, which the engine mends as any other.
// Calls must not overlap, nor with Close.
func (n *Node) Reconfigure(next Config) error {
	now := n.inUse()
	c := *now
	c.adopt(&next)
	if err := c.Validate(); err != nil {
		return err
	}
	if c.Backend != now.Backend {
		for _, sh := range n.shards { // they have one spec, so the first error is that of all
			fleet, ok := sh.backend.(kvadapter.Fleet)
			if !ok {
				return fmt.Errorf("backend %s: another one takes a restart", now.Backend)
			}
			if err := fleet.Reconfigure(c.Backend); err != nil {
				return err
			}
		}
	}
	for _, sh := range n.shards {
		sh.replica.Resize(c.MemoryLimit, c.HotCache)
		consistency.Tune(sh.engine, consistency.Tuning{
			MaxItem: c.MaxItemSize, RepairRate: c.RepairRate,
			WriteAcks: c.WriteAcks, MaxSkew: c.MaxSkew, TombstoneMaxAge: c.TombstoneMaxAge,
		})
	}
	n.logSample.set(c.LogSample)
	n.trace(&c)
	n.conf.Store(&c) // sessions look whether they are to trace when it is another
	if c.IdleTimeout != now.IdleTimeout {
		n.retime(c.IdleTimeout)
	}
	return nil
}

// retime tells connections that wait for their clients how long they may.
func (n *Node) retime(idle time.Duration) {
	for _, l := range n.loops {
		l.wake()
	}
	until := time.Time{} // never
	if idle > 0 {
		until = time.Now().Add(idle)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, info := range n.conns {
		if info.conn != nil {
			info.conn.SetDeadline(until)
		}
	}
}

// reloads is what came of the last time that the settings were read.
type reloads struct {
	mu   sync.Mutex
	last reload // guarded by mu
}

// reload is one time that the settings were read.
type reload struct {
	Time  time.Time `json:"time"`
	Error string    `json:"error,omitempty"` // why those of before stay in use
}

func (r *reloads) get() reload {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// Reloaded notes for /config and /metrics that the settings were read again, and why
// those of before stay in use, if they do.
func (n *Node) Reloaded(err error) {
	last := reload{Time: time.Now()}
	if err != nil {
		last.Error = err.Error()
	}
	n.reloads.mu.Lock()
	defer n.reloads.mu.Unlock()
	n.reloads.last = last
}

// serveConfig shows the settings in use, and where each came from.
func (n *Node) serveConfig(w http.ResponseWriter, _ *http.Request) {
	answer := struct {
		Loaded   reload    `json:"loaded"`
		Settings []Setting `json:"settings"`
	}{n.reloads.get(), append([]Setting{}, n.inUse().Settings...)}
	for i := range answer.Settings {
		s := &answer.Settings[i]
		if s.Name == "log-level" && n.cfg.LogLevel != nil && n.cfg.LogLevel.String() != s.Value {
			s.Value, s.From = n.cfg.LogLevel.String(), "/loglevel"
		}
	}
	answerJSON(w, answer)
}
