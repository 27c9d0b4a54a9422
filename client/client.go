package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// DefaultTimeout is what [New] sets Timeout to. It is longer than a controller's
// own limit for a command, so that one which cannot serve gets to say why.
const DefaultTimeout = 2 * time.Second

// ErrUnreachable is wrapped by the error of an operation for which no controller
// could be dialled. It was not sent, so it did not happen; try again later.
var ErrUnreachable = errors.New("no controller reachable")

// LostError is returned by an operation whose connection broke, or whose Timeout
// passed, after it was begun. It may or may not have happened; the caller knows
// whether repeating it is safe.
type LostError struct {
	Controller string // its address, as given to New
	Err        error  // of the connection: io.EOF, a *net.OpError, ...
}

func (e *LostError) Error() string {
	return "connection to " + e.Controller + " lost: " + e.Err.Error() + " (the operation may or may not have happened)"
}

func (e *LostError) Unwrap() error { return e.Err }

// Client is a gomemcache client for the controllers of one cluster. Its methods
// may be called from many goroutines; its fields, those of the embedded client
// included, are set before the first call.
type Client struct {
	// Client is the gomemcache client whose methods and fields these are. Its
	// own DialContext is taken: set the one below.
	*memcache.Client

	// DialContext, if not nil, connects to a controller in place of net.Dialer,
	// for example with TLS. The network is "tcp" or "unix". A connection that
	// does not implement syscall.Conn is not checked before it is used again, so
	// the first request after a restart may end in a LostError.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)

	controllers *controllers

	mu   sync.Mutex
	idle *rawConn // the connection Raw used last, if it can be used again
}

// New returns a client for the given controllers, each "host:port", "unix:/path"
// or "/path". It connects to nothing yet; names are resolved at each dial.
// Without controllers every operation returns memcache.ErrNoServers.
func New(servers ...string) *Client {
	c := &Client{controllers: &controllers{addrs: append([]string(nil), servers...)}}
	c.Client = memcache.NewFromSelector(c.controllers)
	c.Client.Timeout = DefaultTimeout
	c.Client.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		// gomemcache's deadline is for one dial, and this may be several.
		cn, err := c.connect(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err // not cn: a nil *conn is not a nil net.Conn
		}
		return cn, nil
	}
	return c
}

// Controller returns the address of the controller in use, as given to New, or
// "" if there is none.
func (c *Client) Controller() string {
	if len(c.controllers.addrs) == 0 {
		return ""
	}
	return c.controllers.addrs[c.controllers.current.Load()]
}

// Close closes the idle connections. The Client may still be used.
func (c *Client) Close() error {
	c.keep(nil)
	return c.Client.Close()
}

func (c *Client) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return memcache.DefaultTimeout // as gomemcache does
}

// connect dials the current controller, and the next ones if that fails: each
// once, for at most Timeout. This is where any operation moves on, writes
// included, as nothing was sent yet.
func (c *Client) connect(ctx context.Context) (*conn, error) {
	at := c.controllers.current.Load()
	var failures []string
	for range c.controllers.addrs {
		nc, err := c.dial(ctx, c.controllers.addrs[at])
		if err == nil {
			return &conn{Conn: nc, client: c, at: at}, nil
		}
		if errors.Is(err, context.Canceled) {
			return nil, err // the caller's doing, not the controller's
		}
		failures = append(failures, err.Error())
		c.controllers.failed(at)
		at = c.controllers.after(at)
	}
	if failures == nil {
		return nil, memcache.ErrNoServers
	}
	return nil, fmt.Errorf("%w: %s", ErrUnreachable, strings.Join(failures, "; "))
}

func (c *Client) dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	dial := c.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	network, address := endpoint(addr)
	return dial(ctx, network, address)
}

// ErrorLine returns the line with which the server refused the operation that
// failed with err: ERROR, CLIENT_ERROR or SERVER_ERROR, with its text. It
// reports false if err is anything else.
//
// gomemcache has the line inside its error texts only, in one of three forms.
func ErrorLine(err error) (line string, ok bool) {
	if err == nil {
		return "", false
	}
	var refused refusal
	var number *strconv.NumError
	text := err.Error()
	switch {
	case errors.As(err, &refused):
		return string(refused), true
	case errors.As(err, &number): // incr and decr took the line for a number
		line = number.Num
	case strings.HasPrefix(text, "memcache: client error: "):
		line = "CLIENT_ERROR " + text[len("memcache: client error: "):]
	case strings.HasPrefix(text, "memcache: unexpected"): // ... line ...: "<line>"
		if i := strings.LastIndex(text, ` "`); i >= 0 {
			line, _ = strconv.Unquote(text[i+1:])
		}
	}
	line = strings.TrimRight(line, "\r\n")
	return line, isRefusal(line)
}

// refusal is the error of a Raw call: the server's line.
type refusal string

func (r refusal) Error() string { return string(r) }

func isRefusal(line string) bool {
	return strings.HasPrefix(line, "ERROR") || // "ERROR Too many open connections"
		strings.HasPrefix(line, "CLIENT_ERROR") || strings.HasPrefix(line, "SERVER_ERROR")
}
