package shell

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"
)

// maxEvent is the longest line of an event stream: a key has 250 bytes, of which JSON
// makes six each at most.
const maxEvent = 8 << 10

// watched is an event of /watch, or how many were lost.
type watched struct {
	Time      int64 `json:"time_ms"`
	Verb, Key string
	KeyB64    []byte `json:"key_base64"`
	Version   string
	By        string
	Size      int
	Expires   int64 `json:"expires_ms"`
	TTL       int64 `json:"ttl_ms"`
	Lost      uint64
}

// watch shows changes as they come, until it is interrupted or the controller stops.
func (sh *shell) watch(in input) error {
	query := url.Values{}
	if len(in.args) > 0 {
		query.Set("prefix", in.args[0].text)
	}
	at, err := sh.admin()
	if err != nil {
		return err
	}
	stream, err := at.Get(sh.ctx, "/watch", query)
	if err != nil {
		return err
	}
	defer stream.Close()
	if sh.person && !in.json {
		sh.header("-- watching; Ctrl-C ends it")
	}
	err = readEvents(bufio.NewReaderSize(stream, maxEvent), func(data []byte) error {
		if in.json {
			sh.out.Write(data)
			sh.out.WriteByte('\n')
		} else {
			var ev watched
			if err := json.Unmarshal(data, &ev); err != nil {
				return fmt.Errorf("an event cannot be read: %w", err)
			}
			sh.showEvent(&ev)
		}
		return nil
	}, sh.out.Flush)
	if sh.ctx.Err() != nil {
		return nil // that is how it ends
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the controller ended the stream: it stops")
	}
	return err
}

func (sh *shell) showEvent(ev *watched) {
	if ev.Lost > 0 {
		fmt.Fprintln(sh.out, paint(sh.colourOut, "33", fmt.Sprintf("-- %d events lost: they came faster than they were read", ev.Lost)))
		return
	}
	key := ev.Key
	if key == "" {
		key = string(ev.KeyB64)
	}
	line := fmt.Sprintf("%s %s %s", time.UnixMilli(ev.Time).UTC().Format("15:04:05.000"), paint(sh.colourOut, verbColour(ev.Verb), fmt.Sprintf("%-6s", clean(ev.Verb))), orDash(clean(key)))
	if ev.Verb != "delete" && ev.Verb != "flush" {
		line += fmt.Sprintf("  size %d", ev.Size)
	}
	if ev.Expires != 0 {
		line += "  ttl " + (time.Duration(ev.TTL) * time.Millisecond).Round(time.Second).String()
	}
	line += "  version " + clean(ev.Version)
	if ev.By != "" {
		line += "  by " + clean(ev.By)
	}
	fmt.Fprintln(sh.out, line)
}

func verbColour(verb string) string {
	switch verb {
	case "set":
		return "32"
	case "touch":
		return "36"
	}
	return "31" // something is gone
}

// readEvents hands the data of each event of a stream to each, and calls idle when it
// has to wait for more, until one of them fails or the stream ends. Kinds and comments
// are passed over. Data is valid during the call.
func readEvents(r *bufio.Reader, each func(data []byte) error, idle func() error) error {
	for {
		if r.Buffered() == 0 {
			if err := idle(); err != nil {
				return err
			}
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		data, ok := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte("data: "))
		if !ok {
			continue
		}
		if err := each(data); err != nil {
			return err
		}
	}
}
