package controller

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/cluster"
)

// joinPatience is how long others may take to answer who is to join them. Each may take
// some seconds to be missed.
const joinPatience = 10 * time.Second

// clusterAddresses is what GET /join tells: what a further controller must know to join.
type clusterAddresses struct {
	Controller string            `json:"controller"` // who was asked
	Members    []memberAddresses `json:"members"`
}

// memberAddresses is where a controller is, as it says; one that does not answer too, as
// its name and its addresses are taken still.
type memberAddresses struct {
	Name   string `json:"name"`
	Alive  bool   `json:"alive"`
	Listen string `json:"listen"`
	Admin  string `json:"admin"`
	Peer   string `json:"peer"`
	Gossip string `json:"gossip"`
}

// joined is what POST /join answers.
type joined struct {
	Controller string   `json:"controller"`
	Answered   []string `json:"answered"` // gossip addresses
	Members    []string `json:"members"`  // the names of all that are reached now
	New        []string `json:"new"`      // of those, who was not before
}

// serveJoin tells what a further controller must know, or has this one look for others
// at a gossip address now: GET, POST with at=ADDRESS.
func (n *Node) serveJoin(w http.ResponseWriter, r *http.Request) {
	c := n.cluster.Load()
	switch {
	case c == nil && n.cfg.Alone():
		http.Error(w, "this controller is alone: it has no ports for others; start it again with --expect 2 or more, or with --join", http.StatusConflict)
	case c == nil:
		http.Error(w, n.opening().Error(), http.StatusServiceUnavailable)
	case r.Method == http.MethodGet:
		answer := clusterAddresses{Controller: n.cfg.Name}
		for _, m := range c.Members() {
			answer.Members = append(answer.Members, memberAddresses{m.Name, m.Alive, m.Listen, m.Admin, m.Peer, m.Gossip})
		}
		answerJSON(w, answer)
	case r.Method == http.MethodPost && r.PostFormValue("at") != "":
		ctx, cancel := context.WithTimeoutCause(r.Context(), joinPatience, errors.New("whoever is there takes too long"))
		defer cancel()
		answer, err := n.join(ctx, c, r.PostFormValue("at"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		answerJSON(w, answer)
	default:
		http.Error(w, "POST it, with at=HOST:PORT, a gossip address; or GET what a further controller must know", http.StatusMethodNotAllowed)
	}
}

// join has this controller meet whoever gossips at an address.
func (n *Node) join(ctx context.Context, c *cluster.Cluster, at string) (*joined, error) {
	before := answering(c)
	answered, err := c.Meet(ctx, at)
	if err != nil {
		n.log.Warn("was to join others, and did not", zap.String("gossip", at), zap.Error(err))
		return nil, err
	}
	answer := &joined{Controller: n.cfg.Name, Answered: answered, Members: answering(c), New: []string{}}
	for _, name := range answer.Members {
		if !slices.Contains(before, name) {
			answer.New = append(answer.New, name)
		}
	}
	n.log.Info("joined others, as its operator says", zap.Strings("gossip", answered), zap.Strings("new", answer.New))
	return answer, nil
}

// answering is the names of the members that answer, this one included.
func answering(c *cluster.Cluster) (names []string) {
	for _, m := range c.Members() {
		if m.Alive {
			names = append(names, m.Name)
		}
	}
	return names
}
