package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/colo/api/pki"
)

// ErrUnreachable is returned when no answer came from the daemon. What was asked for may or may not have been done.
var ErrUnreachable = errors.New("the node's daemon does not answer")

// ErrCertificate is returned, with ErrUnreachable, when one side doesn't accept the other one's certificate.
var ErrCertificate = errors.New("the certificates don't fit together")

// errGarbled is in an ErrUnreachable of somebody who answered, but not as a daemon does.
var errGarbled = errors.New("not an answer of a coloctl daemon")

// ClientOptions say where a daemon is: on this host's Socket, or at Addresses with certificates.
type ClientOptions struct {
	Socket string

	Node        string   // whose certificate the daemon must have
	Addresses   []string // host:port, in order of preference
	Credentials *pki.Credentials
	// Dial opens a connection to an address before TLS. Default: TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client speaks to one daemon. All methods may be called concurrently.
type Client struct {
	where string // for messages
	http  *http.Client
	addrs addresses
	tr    *http.Transport
	own   *pki.Credentials // nil on a socket
}

// NewClient makes a client. It connects when it is used.
func NewClient(o ClientOptions) (*Client, error) {
	c := &Client{tr: &http.Transport{
		MaxIdleConns: 16, MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: maxHeader, DisableCompression: true,
	}}
	switch {
	case o.Socket != "" && len(o.Addresses) > 0:
		return nil, errors.New("api client: a socket or addresses, not both")
	case o.Socket != "":
		c.where = o.Socket
		c.tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", o.Socket)
		}
		c.tr.DialTLSContext = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no TLS on a unix socket")
		}
	case o.Credentials == nil:
		return nil, errors.New("api client: certificates are missing")
	default:
		id := pki.Identity{Role: pki.Node, Name: o.Node}
		if err := id.Validate(); err != nil {
			return nil, err
		}
		if o.Dial == nil {
			o.Dial = dialTCP
		}
		c.where, c.own = o.Node, o.Credentials
		c.SetAddresses(o.Addresses)
		one := o.Credentials.Dialer(id, o.Dial)
		c.tr.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return c.addrs.dial(ctx, "tcp", one) }
	}
	c.http = &http.Client{Transport: c.tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// SetAddresses changes where the daemon is, for connections from now on.
func (c *Client) SetAddresses(list []string) { c.addrs.set(append([]string{}, list...)) }

// Close ends idle connections.
func (c *Client) Close() { c.tr.CloseIdleConnections() }

// call is one request.
type call struct {
	method string
	path   []string // elements, not yet escaped
	query  url.Values
	header http.Header
	body   []byte
	media  string // of the body; JSON when empty
}

const maxAnswer = 16 << 20

// url makes the request's address. The host is of no importance: the dialer knows where to go.
func (c *Client) url(k *call) string {
	scheme := "https"
	if c.addrs.list.Load() == nil {
		scheme = "http"
	}
	var b strings.Builder
	b.WriteString(scheme + "://node")
	for _, e := range k.path {
		b.WriteString("/" + url.PathEscape(e))
	}
	if len(k.query) > 0 {
		b.WriteString("?" + k.query.Encode())
	}
	return b.String()
}

// open sends a request and returns the answer, whose body the caller closes, or what the server answered instead.
func (c *Client) open(ctx context.Context, k *call) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, k.method, c.url(k), bytes.NewReader(k.body))
	if err != nil {
		return nil, err
	}
	for name, v := range k.header {
		req.Header[name] = v
	}
	if k.body != nil {
		req.Header.Set("Content-Type", k.media)
		if k.media == "" {
			req.Header.Set("Content-Type", "application/json")
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, c.refusal(resp)
}

// do sends a request and reads a JSON answer into out, if that is not nil.
func (c *Client) do(ctx context.Context, k *call, out any) (http.Header, error) {
	resp, err := c.open(ctx, k)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if text, ok := out.(*[]byte); ok {
		*text = data
		return resp.Header, nil
	}
	if out != nil {
		// A newer server may say more than this client knows.
		if err := json.Unmarshal(data, out); err != nil {
			return nil, fmt.Errorf("%s: %w: %w: %w", c.where, ErrUnreachable, errGarbled, err)
		}
	}
	return resp.Header, nil
}

// refusal reads an error from an answer.
func (c *Client) refusal(resp *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	var body struct {
		Error *ErrorBody `json:"error"`
	}
	if err == nil && kind == "application/json" {
		err = json.Unmarshal(data, &body)
	}
	if err != nil || body.Error == nil || body.Error.Code == "" {
		return fmt.Errorf("%s: %w: %w: HTTP %s", c.where, ErrUnreachable, errGarbled, resp.Status)
	}
	return &Error{Status: resp.StatusCode, Body: *body.Error, header: resp.Header}
}

// unreachable says what to do about a request without an answer.
func (c *Client) unreachable(ctx context.Context, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %w: %w", c.where, ErrUnreachable, cause)
	}
	hint := ""
	refused := strings.Contains(err.Error(), "remote error: tls") // TLS 1.3 tells a client late, and with little
	if refused || errors.As(err, new(*pki.RefusalError)) {
		err = fmt.Errorf("%w: %w", ErrCertificate, err)
		if own := c.own.Err(); own != nil {
			err = fmt.Errorf("%w; %w", err, own)
		}
	}
	switch {
	case c.addrs.list.Load() == nil && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		hint = " (is colod running on this host?)"
	case c.addrs.list.Load() == nil && errors.Is(err, fs.ErrPermission):
		hint = " (only root and the socket's group may use it)"
	case refused:
		hint = " (it refused this side's certificate: its log says why)"
	}
	return fmt.Errorf("%s: %w: %w%s", c.where, ErrUnreachable, err, hint)
}

// newKey names a request, so that the server knows it again when it is sent a second time.
func newKey() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func jsonBody(v any) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	return json.Marshal(v)
}
