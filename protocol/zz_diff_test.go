package protocol_test

import (
	"bytes"
	"math/rand"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune"
)

type toy map[string]attune.Item

var toyVer attune.Version = 1000

func (m toy) do(op *attune.Op) attune.Result {
	if op.Verb == attune.Flush {
		clear(m)
		return attune.Result{Status: attune.Flushed}
	}
	cur := m[string(op.Key.Text)]
	c, res := op.Decide(&cur, textNow, nil)
	if !c.None() {
		toyVer++
		c.Stamp(toyVer)
		if c.Item.Value == nil && c.Item.Stored == cur.Stored {
			c.Item.Value = cur.Value
		}
		c.Item.Value = bytes.Clone(c.Item.Value)
		c.Item.Accessed = textNow / 1000
		m[string(op.Key.Text)] = c.Item
		res.Stamped(&c)
	}
	if it, ok := m[string(op.Key.Text)]; ok && op.Verb == attune.Get && !op.Mode.Has(attune.NoBump) {
		it.Fetched = true
		m[string(op.Key.Text)] = it
	}
	return res
}

func TestZZDiff(t *testing.T) {
	addr := os.Getenv("MC")
	if addr == "" {
		t.Skip()
	}
	rnd := rand.New(rand.NewSource(time.Now().UnixNano()))
	pick := func(s ...string) string { return s[rnd.Intn(len(s))] }
	key := func() string { return pick("a", "b", "c", "Zm9v", "noreply", strings.Repeat("k", 250), strings.Repeat("k", 251)) }
	num := func() string { return pick("0", "1", "5", "100", "-1", "x", "", "18446744073709551615", "99999999999999999999", "2147483647") }
	gen := func() string {
		nr := pick("", "", "", " noreply", " x")
		switch rnd.Intn(9) {
		case 0, 1:
			v := pick("", "1", "ab", "10", "hello", "zz zz")
			l := pick("0", "1", "2", "2", "5", "5")
			return pick("set", "add", "replace", "append", "prepend") + " " + key() + " " + pick("0", "7", "-1", "x") + " " + pick("0", "0", "100", "-1", "z") + " " + l + nr + "\r\n" + v + "\r\n"
		case 2:
			return "cas " + key() + " 0 0 1 " + num() + nr + "\r\nq\r\n"
		case 3:
			return pick("get", "gat 0", "gat 100", "gat x", "get") + " " + pick("a", "b", "Zm9v") + " " + pick("", "a", "noreply") + "\r\n"
		case 4:
			return pick("incr", "decr") + " " + key() + " " + num() + nr + "\r\n"
		case 5:
			return pick("touch "+key()+" "+num()+nr, "delete "+key()+nr, "delete "+key()+" 0"+nr, "flush_all"+nr, "verbosity 1"+nr, "bogus", "flush_all x", "mn", "") + "\r\n"
		case 6, 7:
			f := ""
			for range rnd.Intn(6) {
				f += " " + pick("v", "k", "s", "f", "t", "h", "q", "O1", "b", "u", "N30", "R40", "T50", "E9", "C9", "I", "x", "D5", "J9", "MA", "ME", "MP", "MR", "MD", "M+", "N0", "T0", "F5", "Fx", "Cx", "P1", "L1", "y")
			}
			v := pick("mg", "mg", "md", "ma")
			return v + " " + key() + f + "\r\n"
		default:
			f := ""
			for range rnd.Intn(5) {
				f += " " + pick("k", "q", "O1", "b", "N30", "T50", "C9", "I", "MA", "ME", "MP", "MR", "MS", "F5", "Mx", "y", "Cx")
			}
			return "ms " + key() + " " + pick("1", "2", "2", "x") + f + "\r\n" + pick("1", "ab") + "\r\n"
		}
	}
	_ = regexp.MustCompile
	seen := map[string]bool{}
	for range 4000 {
		var in, desc bytes.Buffer
		s := newTextSession(1<<20, toy{}.do)
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		in.WriteString("flush_all\r\n")
		for range 8 {
			in.WriteString(gen())
		}
		if rnd.Intn(2) == 0 {
			b := in.Bytes()
			for range 1 + rnd.Intn(3) {
				i := 11 + rnd.Intn(len(b)-11)
				b[i] = " \r\n0kMTKv\x00b"[rnd.Intn(11)]
			}
		}
		in.WriteString("\r\nversion\r\n")
		c.Write(in.Bytes())
		var got []byte
		buf := make([]byte, 65536)
		for !bytes.Contains(got, []byte("VERSION")) {
			n, err := c.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		c.Close()
		s.feed(t, in.Bytes())
		a := strings.Split(string(got), "VERSION")[0]
		b := strings.Split(string(s.replies), "VERSION")[0]
		if a != b {
			al, bl := strings.Split(a, "\r\n"), strings.Split(b, "\r\n")
			i := 0
			for i < len(al) && i < len(bl) && al[i] == bl[i] {
				i++
			}
			k := ""
			if i < len(al) {
				k += al[i]
			}
			k += " | "
			if i < len(bl) {
				k += bl[i]
			}
			if len(seen) < 25 && !seen[k] {
				seen[k] = true
				desc.WriteString(strings.ReplaceAll(in.String(), strings.Repeat("k", 250), "K"))
				t.Logf("MEMCACHED | ATTUNE: %s\n%q\nmc: %q\nat: %q", k, desc.String(), a, b)
			}
		}
	}
}
