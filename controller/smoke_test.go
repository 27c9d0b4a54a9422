package controller

import (
	"bufio"
	"context"
	"net"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	cfg := Default()
	cfg.Listen = []string{"127.0.0.1:0"}
	cfg.Admin = ""
	n, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", n.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("set a 0 0 1\r\nx\r\nget a b\r\nincr n 1\r\nmg a v c t\r\nstats\r\nset n 0 0 1\r\n5\r\nincr n 3\r\nget nope n a\r\nmn\r\nlru_crawler metadump all\r\nstats sizes\r\nversion\r\n"))
	c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	b := bufio.NewScanner(c)
	for b.Scan() {
		t.Log(b.Text())
	}
	c.Close()
	if err := n.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}
