package controller

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/attunetest"
)

func post(t *testing.T, n *Node, path string, form url.Values) (int, string) {
	t.Helper()
	resp, err := http.PostForm("http://"+n.AdminAddr()+path, form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	var text strings.Builder
	if err := resp.Write(&text); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, text.String()
}

func TestLeadershipIsHandedOver(t *testing.T) {
	nodes := startThree(t, consistency.Linearizable, func(_ int, cfg *Config) { cfg.Admin = attunetest.FreeAddr(t) })
	byName := map[string]*Node{}
	for _, n := range nodes {
		byName[n.cfg.Name] = n
	}
	leader := func() (lead *Node) {
		attunetest.Eventually(t, "all know one leader, and all are voters", func() bool {
			lead = nil
			for _, n := range nodes {
				g, _ := n.group()
				st := g.Status()
				if lead == nil {
					lead = byName[st.Leader]
				}
				if lead == nil || lead != byName[st.Leader] || st.Voters != 3 {
					return false
				}
			}
			g, _ := lead.group()
			return g.Status().Role == "leader"
		})
		return lead
	}
	old := leader()
	c := dial(t, old)
	next := watch(t, nodes[2], "")
	c.ask("set k 0 0 1\r\nv\r\n", "STORED\r\n")
	first := next()
	other := nodes[0]
	if other == old {
		other = nodes[1]
	}
	if code, text := post(t, old, "/leader/transfer", url.Values{"to": {"nobody"}}); code != 409 || !strings.Contains(text, "no member") {
		t.Errorf("to nobody: %d %s", code, text)
	}
	if code, text := post(t, other, "/leader/transfer", nil); code != 409 || !strings.Contains(text, old.cfg.Name+" leads: ask it (admin address "+old.cfg.Admin) {
		t.Errorf("asked another: %d %s", code, text)
	}
	if code, text := post(t, old, "/leader/transfer", url.Values{"to": {other.cfg.Name}}); code != 200 || !strings.Contains(text, other.cfg.Name) {
		t.Errorf("%d %s", code, text)
	}
	attunetest.Eventually(t, "it leads", func() bool { return leader() == other })
	// What the former one decided is its decision still, and what comes now is not.
	next = watch(t, nodes[2], "")
	c.ask("set k 0 0 1\r\nv\r\n", "STORED\r\n")
	if now := next(); now.By != other.cfg.Name || now.Version <= first.Version || first.By != old.cfg.Name {
		t.Errorf("decided by %s, and then by %s", first.By, now.By)
	}
	for _, n := range nodes {
		if by := n.decidedBy(attune.Version(first.Version)); by != old.cfg.Name {
			t.Errorf("%s says that %q decided what %s did", n.cfg.Name, by, old.cfg.Name)
		}
	}
	c.ask("get k\r\n", "VALUE k 0 1\r\nv\r\nEND\r\n")
	if code, text := post(t, other, "/leader/transfer", nil); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	attunetest.Eventually(t, "it leads no more", func() bool { return leader() != other })
	if code, _ := httpGet(t, old, "/leader/transfer"); code != 405 {
		t.Errorf("GET: %d", code)
	}
}

// A controller with a data-dir is no member any more after it left for good, also the
// leader; and the last one stays.
func TestLeaveForGood(t *testing.T) {
	for _, level := range []consistency.Level{consistency.Sequential, consistency.Eventual} {
		t.Run(level.String(), func(t *testing.T) {
			nodes := startThree(t, level, func(_ int, cfg *Config) { cfg.DataDir = t.TempDir() })
			attunetest.Eventually(t, "all are there", func() bool {
				for _, n := range nodes {
					if n.Ready() != nil || len(n.members()) != 3 {
						return false
					}
					if g, ok := n.group(); ok && g.Status().Voters != 3 {
						return false
					}
				}
				return true
			})
			for i := range 2 {
				n := nodes[i]
				if code, _ := httpGet(t, n, "/leave"); code != 405 {
					t.Errorf("GET: %d", code)
				}
				if code, text := post(t, n, "/leave", nil); code != 400 || !strings.Contains(text, "for-good=yes") {
					t.Errorf("%d %s", code, text)
				}
				attunetest.Eventually(t, "it may leave", func() bool {
					code, text := post(t, n, "/leave", url.Values{"for-good": {"yes"}})
					if code != 200 && code != 409 {
						t.Fatalf("%d %s", code, text)
					}
					return code == 200
				})
				<-n.ShutdownAsked()
				if err := n.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				attunetest.Eventually(t, "the others go on without it", func() bool {
					if g, ok := nodes[2].group(); ok {
						st := g.Status()
						return len(st.Members) == 2-i && st.Voters == 2-i && nodes[2].Ready() == nil
					}
					g, _ := nodes[2].gossiping()
					alive := 0
					for _, p := range g.Status().Peers {
						if p.Alive {
							alive++
						}
					}
					return alive == 1-i
				})
				dial(t, nodes[2]).ask("set k 0 0 1\r\nv\r\nget k\r\n", "STORED\r\nVALUE k 0 1\r\nv\r\nEND\r\n")
			}
			if code, text := post(t, nodes[2], "/leave", url.Values{"for-good": {"yes"}}); code != 409 || !strings.Contains(text, "SIGTERM") {
				t.Errorf("the last one: %d %s", code, text)
			}
		})
	}
	cfg := testConfig()
	cfg.Admin, cfg.Level = "127.0.0.1:0", consistency.Eventual
	n := start(t, cfg)
	if code, text := post(t, n, "/leave", url.Values{"for-good": {"yes"}}); code != 409 || !strings.Contains(text, "alone") {
		t.Errorf("%d %s", code, text)
	}
	if code, text := post(t, n, "/leader/transfer", nil); code != 409 || !strings.Contains(text, "no leader") {
		t.Errorf("%d %s", code, text)
	}
}
