package shell

import (
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
)

// explanation is what /explain answers, as far as it is shown.
type explanation struct {
	Key, Level, Controller string
	Shard, Shards          int
	Leader, Home           string
	Copies                 []struct {
		Controller, Error, State, Version, Bytes string
		Changed                                  int64 `json:"changed_ms"`
		Size                                     int
		Flags                                    uint32
		Expires                                  int64  `json:"expires_ms"`
		TTL                                      int64  `json:"ttl_ms"`
		StoreError                               string `json:"store_error"`
	}
	Get, Why string
}

// explain shows what all controllers have of a key, and what a get of it comes to. A
// key that a get would not hit makes it a "no".
func (sh *shell) explain(in input) error {
	keys, err := keysOf(in.args)
	if err != nil {
		return err
	}
	at, err := sh.admin()
	if err != nil {
		return err
	}
	ctx, cancel := sh.patient()
	defer cancel()
	var x explanation
	raw, err := at.GetJSON(ctx, "/explain", url.Values{"key": keys}, &x)
	if err != nil {
		return err
	}
	if in.json {
		sh.out.Write(raw)
	} else {
		sh.showExplanation(&x)
	}
	if x.Get != "hit" {
		return no("")
	}
	return nil
}

func (sh *shell) showExplanation(x *explanation) {
	where := fmt.Sprintf("%s: level %s, shard %d of %d", clean(x.Key), x.Level, x.Shard, x.Shards)
	if x.Leader != "" {
		where += ", leader " + clean(x.Leader)
	}
	if x.Home != "" {
		where += ", home " + clean(x.Home)
	}
	fmt.Fprintln(sh.out, where)
	colour := "31"
	if x.Get == "hit" {
		colour = "32"
	}
	fmt.Fprintf(sh.out, "a get at %s: %s: %s\n\n", clean(x.Controller), paint(sh.colourOut, colour, clean(x.Get)), clean(x.Why))
	rows := [][]string{{"CONTROLLER", "STATE", "VERSION", "CHANGED", "SIZE", "FLAGS", "TTL", "BYTES"}}
	for _, c := range x.Copies {
		row := []string{c.Controller, c.State, orDash(c.Version), "-", "-", "-", "-", orDash(c.Bytes)}
		switch {
		case c.Error != "":
			row = []string{c.Controller, "unknown: " + c.Error}
		case c.Changed != 0:
			row[3] = time.UnixMilli(c.Changed).UTC().Format("2006-01-02T15:04:05.000Z")
		}
		if c.State == "present" || c.State == "freed" {
			row[4], row[5] = fmt.Sprint(c.Size), fmt.Sprint(c.Flags)
			if c.Expires != 0 {
				row[6] = (time.Duration(c.TTL) * time.Millisecond).Round(time.Second).String()
			}
		}
		if c.StoreError != "" {
			row[7] += ": " + c.StoreError
		}
		rows = append(rows, row)
	}
	sh.table(rows)
}

// table prints rows in columns, the first as a head.
func (sh *shell) table(rows [][]string) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		for i := range row {
			row[i] = clean(row[i])
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
	head, rest, _ := strings.Cut(b.String(), "\n")
	fmt.Fprintln(sh.out, paint(sh.colourOut, "2", head))
	sh.out.WriteString(rest)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
