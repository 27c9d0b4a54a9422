package history

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Client is one connection to a memcached. It speaks the meta dialect, which
// tells the versions of what it writes, or the text dialect that most clients
// speak.
type Client struct {
	conn    net.Conn
	r       *bufio.Reader
	text    bool
	timeout time.Duration
	out     []byte
}

// maxValue is the longest value a client takes, in bytes.
const maxValue = 16 << 20

// Dial connects to a memcached. A command that takes longer than timeout is
// Unknown.
func Dial(addr string, text bool, timeout time.Duration) (*Client, error) {
	conn, err := net.DialTimeout("tcp", addr, timeout)
	if err != nil {
		return nil, err
	}
	return &Client{conn: conn, r: bufio.NewReader(conn), text: text, timeout: timeout}, nil
}

// Close closes the connection.
func (c *Client) Close() { c.conn.Close() }

// Do executes a command. A value longer than its token is filled up to size. After
// Unknown or Broken the connection is of no use any more.
func (c *Client) Do(op Op, size int) Outcome {
	_ = c.conn.SetDeadline(time.Now().Add(c.timeout))
	if c.text {
		c.out = appendText(c.out[:0], op, size)
	} else {
		c.out = appendMeta(c.out[:0], op, size)
	}
	if _, err := c.conn.Write(c.out); err != nil {
		return Outcome{Value: err.Error()}
	}
	line, err := c.line()
	if err != nil {
		return Outcome{Value: err.Error()}
	}
	if strings.HasPrefix(line, "SERVER_ERROR") {
		return Outcome{Value: line}
	}
	var out Outcome
	var ok bool
	if c.text {
		out, ok, err = c.textAnswer(op, line)
	} else {
		out, ok, err = c.metaAnswer(op, line)
	}
	switch {
	case err != nil:
		return Outcome{Value: err.Error()}
	case !ok:
		return Outcome{Status: Broken, Value: line}
	}
	return out
}

func (c *Client) line() (string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// block reads a value of size bytes and returns its token.
func (c *Client) block(size string) (string, error) {
	n, err := strconv.Atoi(size)
	if err != nil || n < 0 || n > maxValue {
		return "", fmt.Errorf("a value of %q bytes", size)
	}
	data := make([]byte, n+2)
	if _, err := io.ReadFull(c.r, data); err != nil {
		return "", err
	}
	return unfill(data[:n]), nil
}

// fill appends value and, if it is shorter than size, a mark and the value again
// and again, so that a reader notices bytes of another value.
func fill(b []byte, value string, size int) []byte {
	begin := len(b)
	b = append(b, value...)
	if len(value) == 0 || len(value) >= size {
		return b
	}
	b = append(b, '~')
	for len(b)-begin < size {
		b = append(b, value[:min(len(value), size-(len(b)-begin))]...)
	}
	return b
}

// unfill returns the token of a filled value, and the whole of one that is torn,
// which is no value anybody wrote.
func unfill(data []byte) string {
	i := bytes.IndexByte(data, '~')
	if i <= 0 {
		return strings.TrimRight(string(data), " ") // a decr may leave blanks
	}
	token, rest := data[:i], data[i+1:]
	for len(rest) > 0 {
		n := min(len(rest), len(token))
		if !bytes.Equal(rest[:n], token[:n]) {
			return fmt.Sprintf("torn(%s~%.40s);", token, rest)
		}
		rest = rest[n:]
	}
	return string(token)
}

var metaModes = map[Kind]string{Set: "", CAS: "", Add: " ME", Replace: " MR", Append: " MA", Prepend: " MP"}

func appendMeta(b []byte, op Op, size int) []byte {
	switch op.Kind {
	case Get:
		return fmt.Appendf(b, "mg %s v c\r\n", op.Key)
	case Delete:
		return fmt.Appendf(b, "md %s\r\n", op.Key)
	case Incr:
		return fmt.Appendf(b, "ma %s v c D%d\r\n", op.Key, op.Delta)
	case Decr:
		return fmt.Appendf(b, "ma %s v c MD D%d\r\n", op.Key, op.Delta)
	case Flush:
		return append(b, "flush_all\r\n"...)
	}
	mode := metaModes[op.Kind]
	if op.Kind == CAS {
		mode = fmt.Sprint(" C", op.Compare)
	}
	if op.TTL != 0 {
		mode += fmt.Sprint(" T", op.TTL)
	}
	return appendBlock(fmt.Appendf(b, "ms %s %d c%s\r\n", op.Key, filled(op, size), mode), op, size)
}

func appendText(b []byte, op Op, size int) []byte {
	switch op.Kind {
	case Get:
		return fmt.Appendf(b, "gets %s\r\n", op.Key)
	case Delete:
		return fmt.Appendf(b, "delete %s\r\n", op.Key)
	case Incr, Decr:
		return fmt.Appendf(b, "%v %s %d\r\n", op.Kind, op.Key, op.Delta)
	case Flush:
		return append(b, "flush_all\r\n"...)
	case CAS:
		b = fmt.Appendf(b, "cas %s 0 %d %d %d\r\n", op.Key, op.TTL, filled(op, size), op.Compare)
	default:
		b = fmt.Appendf(b, "%v %s 0 %d %d\r\n", op.Kind, op.Key, op.TTL, filled(op, size))
	}
	return appendBlock(b, op, size)
}

// filled is the length of the value of op. Those of counters, and pieces that are
// appended, are never filled.
func filled(op Op, size int) int {
	if op.Kind == Append || op.Kind == Prepend || len(tokens(op.Value)) == 0 {
		return len(op.Value)
	}
	return max(len(op.Value), size)
}

func appendBlock(b []byte, op Op, size int) []byte {
	return append(fill(b, op.Value, min(size, filled(op, size))), "\r\n"...)
}

func (c *Client) metaAnswer(op Op, line string) (out Outcome, ok bool, err error) {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return out, false, nil
	}
	if op.Kind == Flush {
		return Outcome{Status: Flushed}, line == "OK", nil
	}
	flags := fields[1:]
	if fields[0] == "VA" {
		if len(flags) == 0 {
			return out, false, nil
		}
		if out.Value, err = c.block(flags[0]); err != nil {
			return out, false, err
		}
		flags = flags[1:]
	}
	for _, f := range flags {
		if f[0] == 'c' {
			if out.Version, err = strconv.ParseUint(f[1:], 10, 64); err != nil {
				return out, false, nil
			}
		}
	}
	counts := op.Kind == Incr || op.Kind == Decr
	switch fields[0] {
	case "VA":
		out.Status = Hit
		if counts {
			out.Status = Counted
			out.Number, err = strconv.ParseUint(out.Value, 10, 64)
			ok, out.Value = err == nil, ""
			return out, ok, nil
		}
		return out, op.Kind == Get, nil
	case "HD":
		out.Status = Stored
		if op.Kind == Delete {
			out.Status = Deleted
		}
		return out, op.Kind != Get && !counts, nil
	case "EN":
		return Outcome{Status: Miss}, op.Kind == Get, nil
	case "NS":
		return Outcome{Status: NotStored}, op.Kind == Add || op.Kind == Replace || op.Kind == Append || op.Kind == Prepend, nil
	case "EX":
		return Outcome{Status: Exists}, op.Kind == CAS, nil
	case "NF":
		return Outcome{Status: NotFound}, op.Kind == CAS || op.Kind == Delete || counts, nil
	}
	return out, false, nil
}

func (c *Client) textAnswer(op Op, line string) (out Outcome, ok bool, err error) {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return out, false, nil
	}
	conditional := op.Kind == Add || op.Kind == Replace || op.Kind == Append || op.Kind == Prepend
	counts := op.Kind == Incr || op.Kind == Decr
	switch fields[0] {
	case "VALUE":
		if op.Kind != Get || len(fields) != 5 || fields[1] != op.Key {
			return out, false, nil
		}
		out.Status = Hit
		if out.Version, err = strconv.ParseUint(fields[4], 10, 64); err != nil {
			return out, false, nil
		}
		if out.Value, err = c.block(fields[3]); err != nil {
			return out, false, err
		}
		end, err := c.line()
		return out, end == "END", err
	case "END":
		return Outcome{Status: Miss}, op.Kind == Get, nil
	case "STORED":
		return Outcome{Status: Stored}, conditional || op.Kind == Set || op.Kind == CAS, nil
	case "NOT_STORED":
		return Outcome{Status: NotStored}, conditional, nil
	case "EXISTS":
		return Outcome{Status: Exists}, op.Kind == CAS, nil
	case "NOT_FOUND":
		return Outcome{Status: NotFound}, op.Kind == CAS || op.Kind == Delete || counts, nil
	case "DELETED":
		return Outcome{Status: Deleted}, op.Kind == Delete, nil
	case "OK":
		return Outcome{Status: Flushed}, op.Kind == Flush, nil
	}
	if counts {
		n, err := strconv.ParseUint(fields[0], 10, 64)
		return Outcome{Status: Counted, Number: n}, err == nil, nil
	}
	return out, false, nil
}

// giveUp has what is under way end after a while at the latest.
func (c *Client) giveUp(after time.Duration) { _ = c.conn.SetDeadline(time.Now().Add(after)) }
