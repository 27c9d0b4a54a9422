package faults

import (
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/chromedp/chromedp"

	"github.com/attunekv/attune/internal/attunetest"
)

// TestPageOfTheShell takes the picture of what commands print on a terminal.
func TestPageOfTheShell(t *testing.T) {
	if screenshots == "" {
		t.Skip("there is nothing to be found wrong by it: it takes a picture, for make screenshots")
	}
	b := newBrowser(t)
	c := attunetest.StartCluster(t, attunetest.ClusterOptions{Level: linearizable})
	client := memcache.New(c.Nodes[1].Listen)
	defer client.Close()
	if err := client.Set(&memcache.Item{Key: "greeting", Value: []byte("hello")}); err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	page.WriteString(`<!DOCTYPE html><meta charset="utf-8"><style>body{margin:0;background:#16181d;color:#d8dbe2}pre{margin:16px;font:15px/1.35 monospace}</style><pre>`)
	for _, args := range []string{"show", "cli explain greeting", "cli trace append greeting !", "leader"} {
		server := " -s " + c.Nodes[1].Listen
		if args == "leader" {
			server = " --admin " + c.Nodes[1].Admin
		}
		command, rest, _ := strings.Cut(args, " ")
		fmt.Fprintf(&page, "<b>$ attune %s</b>\n", html.EscapeString(args))
		// Only a terminal is shown colours.
		out, err := exec.Command("script", "-qec", attunetest.Binary(t)+" "+command+server+" "+rest, os.DevNull).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
		page.WriteString(ansiToHTML(string(out)) + "\n")
	}
	file := filepath.Join(t.TempDir(), "shell.html")
	if err := os.WriteFile(file, []byte(page.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Do(b.ctx, chromedp.Navigate("file://"+file)); err != nil {
		t.Fatal(err)
	}
	b.pictureOf("shell.png", int64(b.number(`document.body.scrollHeight`))+16)
}

var ansi = regexp.MustCompile(`\x1b\[([0-9;]*)m`)

// ansiToHTML is what a terminal shows of a program's output.
func ansiToHTML(out string) string {
	style := map[string]string{
		"1": "font-weight:bold", "2": "opacity:.6", "31": "color:#ff6b68", "32": "color:#6cc66c", "33": "color:#e0b050", "36": "color:#5fc4d8",
	}
	open := 0
	page := ansi.ReplaceAllStringFunc(html.EscapeString(strings.ReplaceAll(out, "\r", "")), func(code string) string {
		code = strings.Trim(code, "\x1b[m")
		if code == "" || code == "0" {
			closed := strings.Repeat("</span>", open)
			open = 0
			return closed
		}
		var css []string
		for part := range strings.SplitSeq(code, ";") {
			css = append(css, style[part])
		}
		open++
		return `<span style="` + strings.Join(css, ";") + `">`
	})
	return page + strings.Repeat("</span>", open)
}
