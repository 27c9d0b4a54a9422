package client

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
)

const (
	maxLine  = 8 << 10 // a reply line; the longest hold a key of 250 bytes
	maxBlock = 1 << 30 // a data block: the largest item memcached can be told to keep
)

// rawConn is a connection that Raw uses.
type rawConn struct {
	*conn
	r *bufio.Reader
}

// Raw sends a request as it is, line ends and data blocks included, to the
// current controller and hands reply lines to each, without their line ends,
// until it returns false. After a VA or VALUE line, block is the data block;
// otherwise it is nil. Both are valid during the call only.
//
// It is the caller who knows which reply is the last. For meta commands, which
// may be told to say nothing, append "mn\r\n" to the request and stop at MN.
//
// A line ERROR, CLIENT_ERROR or SERVER_ERROR is returned as an error, see
// [ErrorLine], and is the last line read. Other errors are as in the package
// comment; if ctx ends the connection is closed and ctx's cause is returned.
// Nothing is repeated. Each step, the write and every reply, may take Timeout.
func (c *Client) Raw(ctx context.Context, request []byte, each func(line, block []byte) (more bool)) error {
	rc, err := c.rawConn(ctx)
	if err != nil {
		return err
	}
	nc := rc.Conn
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	err = rc.roundTrip(request, each)
	if !stop() { // it was closed, or is just being closed
		nc.Close()
		if err != nil {
			return context.Cause(ctx)
		}
		return nil
	}
	if err != nil || rc.r.Buffered() > 0 {
		nc.Close()
		return err
	}
	c.keep(rc)
	return nil
}

// rawConn takes the idle connection, or dials. It is ready for a request.
func (c *Client) rawConn(ctx context.Context) (*rawConn, error) {
	c.mu.Lock()
	rc := c.idle
	c.idle = nil
	c.mu.Unlock()
	if rc == nil {
		cn, err := c.connect(ctx)
		if err != nil {
			return nil, err
		}
		rc = &rawConn{cn, bufio.NewReaderSize(cn, maxLine)}
	} else if err := rc.ready(ctx); err != nil {
		rc.Close()
		return nil, err
	}
	rc.busy = true
	return rc, nil
}

// keep makes rc, which may be nil, the idle connection, and closes the one it
// takes the place of: of calls made at the same time one keeps its connection.
func (c *Client) keep(rc *rawConn) {
	c.mu.Lock()
	old := c.idle
	c.idle = rc
	c.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

func (rc *rawConn) roundTrip(request []byte, each func(line, block []byte) bool) error {
	if err := rc.extend(); err != nil {
		return err
	}
	if _, err := rc.Write(request); err != nil {
		return err
	}
	for {
		if err := rc.extend(); err != nil {
			return err
		}
		line, err := rc.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		if isRefusal(string(line)) {
			return refusal(line)
		}
		block, err := rc.block(&line)
		if err != nil {
			return err
		}
		if !each(line, block) {
			return nil
		}
	}
}

// block reads the data block that line announces. Reading it overwrites the
// buffer that line is in, so line is copied first.
func (rc *rawConn) block(line *[]byte) ([]byte, error) {
	fields := bytes.Fields(*line)
	var size []byte
	switch {
	case len(fields) >= 2 && string(fields[0]) == "VA":
		size = fields[1]
	case len(fields) >= 4 && string(fields[0]) == "VALUE":
		size = fields[3]
	default:
		return nil, nil
	}
	n, err := strconv.ParseUint(string(size), 10, 31)
	if err != nil || n > maxBlock {
		return nil, fmt.Errorf("reply %q has no usable length", *line)
	}
	*line = bytes.Clone(*line)
	block := make([]byte, n+2)
	if _, err := io.ReadFull(rc.r, block); err != nil {
		return nil, err
	}
	block, ok := bytes.CutSuffix(block, []byte("\r\n"))
	if !ok {
		return nil, fmt.Errorf("data block of reply %q does not end after %d bytes", *line, n)
	}
	return block, nil
}
