package controller

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/attunekv/attune/cluster"
)

// faults are those injected and not over yet.
func (n *Node) faults() []cluster.Fault {
	if c := n.cluster.Load(); c != nil {
		return c.Faults()
	}
	return nil
}

// stalled returns when the node is not paused by a fault, or is to stop.
func (n *Node) stalled() {
	c := n.cluster.Load()
	for c != nil && c.Paused() && !n.draining.Load() {
		time.Sleep(10 * time.Millisecond)
	}
}

// serveFault lists faults, injects one, or ends all: GET, POST, DELETE. Each answers
// with those there are then.
func (n *Node) serveFault(w http.ResponseWriter, r *http.Request) {
	c := n.cluster.Load()
	switch {
	case !n.cfg.EnableFaults:
		http.Error(w, "faults are not enabled: start the controller with enable-faults=true, and never where data matters", http.StatusForbidden)
		return
	case c == nil:
		http.Error(w, "this controller is alone: there is nobody to be cut off from", http.StatusConflict)
		return
	}
	switch r.Method {
	case http.MethodGet:
	case http.MethodDelete:
		c.ClearFaults()
	case http.MethodPost:
		f, lasts, err := parseFault(r)
		if err == nil {
			_, err = c.Inject(f, lasts)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	default:
		http.Error(w, "GET lists faults, POST injects one, DELETE ends all", http.StatusMethodNotAllowed)
		return
	}
	type fault struct {
		cluster.Fault
		Text string `json:"text"` // for people
	}
	shown := []fault{}
	for _, f := range c.Faults() {
		shown = append(shown, fault{f, f.String()})
	}
	answerJSON(w, shown)
}

// wall is the time, as faults have it.
func (n *Node) wall() time.Time {
	if c := n.cluster.Load(); c != nil {
		return c.Wall()
	}
	return time.Now()
}

// parseFault reads the form of a POST: kind, peers (comma-separated), percent, delay,
// offset, and for, how long it lasts.
func parseFault(r *http.Request) (f cluster.Fault, lasts time.Duration, err error) {
	f.Kind = r.PostFormValue("kind")
	if peers := r.PostFormValue("peers"); peers != "" {
		f.Peers = strings.Split(peers, ",")
	}
	if v := r.PostFormValue("percent"); v != "" {
		if f.Percent, err = strconv.Atoi(v); err != nil {
			return f, 0, fmt.Errorf("percent: want 1 to 100, have %q", v)
		}
	}
	if v := r.PostFormValue("delay"); v != "" {
		if f.Delay, err = time.ParseDuration(v); err != nil {
			return f, 0, fmt.Errorf("delay: want a duration such as 100ms, have %q", v)
		}
	}
	if v := r.PostFormValue("offset"); v != "" {
		if f.Offset, err = time.ParseDuration(v); err != nil {
			return f, 0, fmt.Errorf("offset: want how far the clock is ahead, such as 1h or -1h; have %q", v)
		}
	}
	if lasts, err = time.ParseDuration(r.PostFormValue("for")); err != nil {
		err = fmt.Errorf("for: say how long it lasts, such as 30s, and at most %v; have %q", cluster.MaxFault, r.PostFormValue("for"))
	}
	return f, lasts, err
}
