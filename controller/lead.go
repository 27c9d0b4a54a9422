package controller

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/consistency"
)

// transferPatience is how long the others may take to elect the one named.
const transferPatience = 5 * time.Second

// serveTransfer hands over leadership, for `attune leader transfer`.
func (n *Node) serveTransfer(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "POST it, with to=NAME or without", http.StatusMethodNotAllowed)
		return
	}
	g, ok := n.group()
	if !ok {
		http.Error(w, fmt.Sprintf("level %v has no leader", n.cfg.Level), http.StatusConflict)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), transferPatience)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	leader, err := g.Transfer(ctx, r.PostFormValue("to"))
	if err != nil {
		text := err.Error()
		if st := g.Status(); st.Role != "leader" {
			for _, m := range n.members() {
				if m.Name == st.Leader && m.Admin != "" {
					text += " (admin address " + m.Admin + ")"
				}
			}
		}
		http.Error(w, text, http.StatusConflict)
		return
	}
	answerJSON(w, map[string]string{"leader": leader})
}

// serveLeave has this controller stop, and its cluster go on as one that never had it,
// for `attune leave`.
func (n *Node) serveLeave(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "POST it, with for-good=yes", http.StatusMethodNotAllowed)
		return
	}
	if r.PostFormValue("for-good") != "yes" {
		http.Error(w, "say for-good=yes: this controller stops, and is no member any more", http.StatusBadRequest)
		return
	}
	if err := n.mayLeave(); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	n.log.Info("leaving the cluster for good, as its operator says")
	n.stopOnce.Do(func() { close(n.stop) })
	answerJSON(w, map[string]string{"status": "leaving", "controller": n.cfg.Name})
}

// mayLeave says why this controller must not leave, or has its engine leave for good
// when it closes.
func (n *Node) mayLeave() error {
	l, ok := n.shards[0].engine.(consistency.Leaver)
	if !ok {
		return fmt.Errorf("this controller is alone; to stop it, send SIGTERM")
	}
	if err := n.Ready(); err != nil {
		return fmt.Errorf("not now: %w", err)
	}
	if err := l.LeaveForGood(); err != nil {
		n.log.Warn("asked to leave the cluster, and does not", zap.Error(err))
		return err
	}
	return nil
}
