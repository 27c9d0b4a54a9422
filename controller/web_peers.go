package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/attunekv/attune/cluster"
)

const (
	// askTimeout is how long another controller may take to tell how it is.
	askTimeout = time.Second
	// maxView is the most bytes believed of that.
	maxView = 4 << 20
	// viewAge is how old a view of the cluster may be that is shown again, so that
	// many who look cost what one does.
	viewAge = time.Second
)

// peerViews asks the other controllers how they are, at the admin addresses that they
// told by gossip, and nowhere else.
type peerViews struct {
	n    *Node
	http http.Client

	mu   sync.Mutex // held while the others are asked; it guards what follows
	body []byte
	made time.Time
}

func newPeerViews(n *Node) *peerViews {
	return &peerViews{n: n, http: http.Client{
		// Neither a proxy nor a redirect leads anywhere else.
		Transport:     &http.Transport{DialContext: (&net.Dialer{}).DialContext, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// close may be called when nobody calls view any more.
func (p *peerViews) close() { p.http.CloseIdleConnections() }

// clusterView is what /api/cluster tells.
type clusterView struct {
	Asked string     `json:"asked"` // who was
	Nodes []peerView `json:"nodes"`
}

// peerView is a controller as it tells itself, or why it does not.
type peerView struct {
	Name  string    `json:"name"`
	Error string    `json:"error"`
	View  *nodeView `json:"view"` // null with an Error
}

// view is all controllers that this one knows, encoded.
func (p *peerViews) view() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.made) < viewAge {
		return p.body
	}
	all := clusterView{Asked: p.n.cfg.Name}
	var members []cluster.Member
	if c := p.n.cluster.Load(); c != nil {
		members = c.Members()
	} else {
		members = []cluster.Member{{Name: p.n.cfg.Name, Self: true}}
	}
	all.Nodes = make([]peerView, len(members))
	// It is for all who wait, so it does not end with the request of one.
	ctx, cancel := context.WithTimeout(p.n.ctx, askTimeout)
	defer cancel()
	var asking sync.WaitGroup
	for i, m := range members {
		v := &all.Nodes[i]
		v.Name = m.Name
		if m.Self {
			own := p.n.view()
			v.View = &own
			continue
		}
		if m.Left {
			v.Error = "it left"
			continue
		}
		asking.Go(func() {
			view, err := p.ask(ctx, m)
			if err != nil {
				v.Error = err.Error()
				return
			}
			v.View = view
		})
	}
	asking.Wait()
	p.body, p.made = encode(all), time.Now()
	return p.body
}

// ask has a member tell how it is.
func (p *peerViews) ask(ctx context.Context, m cluster.Member) (*nodeView, error) {
	addr, err := adminOf(m)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/api/node", nil)
	if err != nil {
		return nil, fmt.Errorf("its admin address %q: %w", addr, err)
	}
	resp, err := p.http.Do(req)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("%s did not answer within %v", addr, askTimeout)
	}
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) { // without what it says of URLs
			err = op
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: is it of an older release?", addr, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxView))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return parseView(body, addr, m.Name)
}

// parseView reads the view of the controller of that name. What it has of a newer
// release is left out: the page that is to show it knows nothing of that.
func parseView(body []byte, addr, name string) (*nodeView, error) {
	var v nodeView
	switch err := json.Unmarshal(body, &v); {
	case err != nil:
		return nil, fmt.Errorf("%s does not answer as a controller of this release does", addr)
	case v.Name != name:
		return nil, fmt.Errorf("at %s there is %.64q, not %q: give each controller an admin address that the others reach", addr, v.Name, name)
	}
	return &v, nil
}

// adminOf is where a member's admin address is reached from here. One that listens on
// all addresses is where its peer port is.
func adminOf(m cluster.Member) (string, error) {
	switch {
	case m.Admin == "":
		return "", errors.New("it has no admin address to be asked at")
	case strings.HasPrefix(m.Admin, "unix:"):
		return "", errors.New("its admin address is a unix socket, which others do not reach")
	}
	host, port, err := reached(m.Admin, m.Peer)
	if err != nil {
		return "", fmt.Errorf("its admin address %q, or its peer address %q: %w", m.Admin, m.Peer, err)
	}
	return net.JoinHostPort(host, port), nil
}
