package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/attunekv/attune/client"
)

// trafficPatience is how long a controller may take to tell what it has done.
const trafficPatience = time.Second

// traffic is what a controller did since it was last asked; the first time, since its
// start.
type traffic struct {
	Name     string  `json:"name"`
	Commands float64 `json:"commands_per_second"`
	Gets     uint64  `json:"gets"`
	Hits     uint64  `json:"hits"`
	Error    string  `json:"error,omitempty"`
}

// row is t in a table.
func (t *traffic) row() []string {
	switch {
	case t.Error != "":
		return []string{t.Name, "unknown: " + t.Error}
	case t.Gets == 0:
		return []string{t.Name, fmt.Sprintf("%.0f", t.Commands), "-"}
	}
	return []string{t.Name, fmt.Sprintf("%.0f", t.Commands), fmt.Sprintf("%.1f %%", 100*float64(t.Hits)/float64(t.Gets))}
}

// counted is what a controller has done since its start.
type counted struct {
	at                   time.Time
	uptime               uint64
	commands, gets, hits uint64
}

// rates are what controllers had done when they were last asked, by name.
type rates map[string]counted

// since asks all controllers of s, at the addresses of their clients, all at once. One
// alone is at addr.
func (r *rates) since(ctx context.Context, s *shown, addr string) []traffic {
	var all []traffic
	var addrs []string
	for _, m := range s.Members {
		if len(m.Fields) > 2 && m.Fields[0] != "failed" && m.Fields[0] != "left" {
			all, addrs = append(all, traffic{Name: m.Name}), append(addrs, m.Fields[2])
		}
	}
	if len(s.Members) == 0 {
		all, addrs = []traffic{{Name: s.Stats["name"]}}, []string{addr}
	}
	now := make([]counted, len(all))
	var wait sync.WaitGroup
	for i := range all {
		wait.Go(func() {
			var err error
			if now[i], err = count(ctx, addrs[i]); err != nil {
				all[i].Error = err.Error()
			}
		})
	}
	wait.Wait()
	was := *r
	*r = make(rates)
	for i := range all {
		if all[i].Error != "" {
			continue
		}
		all[i].between(was[all[i].Name], now[i])
		(*r)[all[i].Name] = now[i]
	}
	return all
}

// between fills in what was done from one moment to another, or up to that if there
// is no first.
func (t *traffic) between(was, is counted) {
	took := is.at.Sub(was.at).Seconds()
	if was.at.IsZero() || is.uptime < was.uptime || is.commands < was.commands || is.gets < was.gets || is.hits < was.hits {
		was, took = counted{}, float64(max(is.uptime, 1)) // it was restarted, or its statistics were reset
	}
	t.Commands = float64(is.commands-was.commands) / took
	t.Gets, t.Hits = is.gets-was.gets, is.hits-was.hits
}

// count asks the controller at addr what it has done.
func count(ctx context.Context, addr string) (n counted, err error) {
	ctx, cancel := context.WithTimeout(ctx, trafficPatience)
	defer cancel()
	c := client.New(addr)
	defer c.Close()
	c.Timeout = trafficPatience
	err = c.Raw(ctx, []byte("stats\r\n"), func(line, _ []byte) bool {
		name, value, ok := strings.Cut(strings.TrimPrefix(string(line), "STAT "), " ")
		if !ok {
			return false
		}
		v, _ := strconv.ParseUint(value, 10, 64) // what is no number counts nothing
		n.add(name, v)
		return true
	})
	n.at = time.Now()
	return n, err
}

// add takes a figure of stats into account.
func (n *counted) add(name string, v uint64) {
	switch name {
	case "uptime":
		n.uptime = v
	case "cmd_get":
		n.commands, n.gets = n.commands+v, v
	case "get_hits":
		n.hits = v
	case "cmd_set", "cmd_touch", "cmd_flush", "delete_hits", "delete_misses",
		"incr_hits", "incr_misses", "decr_hits", "decr_misses":
		n.commands += v
	}
}
