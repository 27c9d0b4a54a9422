package client

import (
	"context"
	"errors"
	"net"
	"time"
)

// conn is a connection as gomemcache's pool, or Raw, keeps it. Used by one
// goroutine at a time.
type conn struct {
	net.Conn // to the controller below; replaced by ready
	client   *Client
	at       uint32 // index of the controller
	// busy: a request was begun and nothing of its reply was read yet. A client
	// that does not pipeline reads a reply before it writes again, so the first
	// Write while not busy is the beginning of a request.
	busy bool
}

// Write sends a part of a request. Before the first part it makes sure that the
// connection is worth sending to.
func (cn *conn) Write(p []byte) (int, error) {
	if !cn.busy {
		if err := cn.ready(context.Background()); err != nil {
			return 0, err
		}
		cn.busy = true
	}
	n, err := cn.Conn.Write(p)
	return n, cn.lost(err)
}

func (cn *conn) Read(p []byte) (int, error) {
	n, err := cn.Conn.Read(p)
	if n > 0 {
		cn.busy = false
	}
	return n, cn.lost(err)
}

// ready replaces the connection if it leads to a controller that is not the
// current one any more, or was closed by its server while idle. It costs one
// system call, and spares a write the choice between failing for nothing and
// being repeated blindly. A server that closes between this check and the
// request cannot be told from one that executed it: that is a LostError.
func (cn *conn) ready(ctx context.Context) error {
	if cn.at == cn.client.controllers.current.Load() && alive(cn.Conn) {
		return nil
	}
	fresh, err := cn.client.connect(ctx)
	if err != nil {
		return err
	}
	cn.Conn.Close()
	cn.Conn, cn.at = fresh.Conn, fresh.at
	return cn.extend()
}

// extend gives the next step a whole Timeout.
func (cn *conn) extend() error {
	return cn.SetDeadline(time.Now().Add(cn.client.timeout()))
}

// lost makes a failure of the connection a LostError and leaves the controller.
// A connection closed on this side says nothing about the controller.
func (cn *conn) lost(err error) error {
	if err == nil || errors.Is(err, net.ErrClosed) {
		return err
	}
	cn.client.controllers.failed(cn.at)
	return &LostError{cn.client.controllers.addrs[cn.at], err}
}
