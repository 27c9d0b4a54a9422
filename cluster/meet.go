package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

const (
	// meetDial is how long somebody may take to answer a knock, and meetProbe to say
	// that gossip is not spoken there.
	meetDial  = 2 * time.Second
	meetProbe = time.Second
)

// Meet exchanges members now with whoever gossips at addr, as this node does by itself
// with those named in Join: host:port, or a host whose port is the one here. Of a name
// that has several addresses all are tried. It returns those that answered. An error says
// that none did, or what keeps whoever did from becoming a member, and what to correct.
func (c *Cluster) Meet(ctx context.Context, addr string) (answered []string, err error) {
	resolving, cancel := context.WithTimeout(ctx, resolveTimeout)
	found, err := c.lookup(resolving, addr)
	cancel()
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, c.here)
	if len(found) == 0 {
		return nil, fmt.Errorf("%s is the gossip address of this controller itself: name another one's", addr)
	}
	type result struct {
		addr string
		err  error
	}
	results := make(chan result, len(found))
	s := &c.seeds
	s.mu.Lock()
	clashes := s.clashes
	if c.ctx.Err() != nil {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	for _, a := range found {
		c.wg.Go(func() { results <- result{a, c.meet(ctx, a)} })
	}
	s.mu.Unlock()
	var errs []error
	for range found {
		select {
		case r := <-results:
			if r.err != nil {
				errs = append(errs, r.err)
			} else {
				answered = append(answered, r.addr)
			}
		case <-ctx.Done():
			return answered, context.Cause(ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.clashes != clashes:
		return answered, errors.New(s.clash)
	case len(answered) == 0:
		return nil, errors.Join(errs...)
	}
	slices.Sort(answered)
	return answered, nil
}

// meet is Meet of one address, ip:port.
func (c *Cluster) meet(ctx context.Context, addr string) error {
	dialer := net.Dialer{Timeout: meetDial}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s: %w: does a controller run there, with this as its gossip address, and does a firewall let it through?", addr, err)
	}
	conn.Close()
	err = c.exchange(addr, true)
	if err == nil {
		return nil
	}
	if all, ok := err.(interface{ WrappedErrors() []error }); ok && len(all.WrappedErrors()) > 0 {
		err = all.WrappedErrors()[0]
	}
	text := strings.TrimPrefix(err.Error(), "failed to join "+addr+": ")
	if why, ok := strings.CutPrefix(text, mergeRefused); ok {
		return fmt.Errorf("%s: %s", addr, why)
	}
	if text == errFault.Error() {
		return fmt.Errorf("%s: %s", addr, text)
	}
	if what := c.otherPort(ctx, addr); what != "" {
		return fmt.Errorf("%s is not for gossip: %s", addr, what)
	}
	return fmt.Errorf("%s answers, but not as gossip does (%s): name the gossip port of a controller, 7946 by default, not that of its clients, its peers or its web page", addr, printable([]byte(text)))
}

// otherPort says whose port an address is that is not of gossip, and which one to name
// instead; "" if nobody is known to have it.
func (c *Cluster) otherPort(ctx context.Context, addr string) string {
	for _, m := range c.Members() {
		for what, its := range map[string]string{"listen": m.Listen, "admin": m.Admin, "peer": m.Peer} {
			if its == addr {
				return fmt.Sprintf("%s has it as %s, and gossips at %s", m.Name, what, m.Gossip)
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, meetProbe)
	defer cancel()
	conn, other, err := c.greet(ctx, addr, 0, Calls)
	if err == nil {
		conn.Close()
		return fmt.Sprintf("%s has it as peer; name what it has as gossip, of port 7946 by default", other.name)
	}
	return ""
}
