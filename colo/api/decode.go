package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// fieldError names the field of a request that is wrong, and where it is. It is an [ErrBadRequest].
type fieldError struct {
	field     string
	msg       string
	line, col int
}

func (e *fieldError) Error() string {
	where := ""
	if e.line > 0 {
		where = fmt.Sprintf(" (line %d, column %d)", e.line, e.col)
	}
	if e.field == "" {
		return fmt.Sprintf("%v: %s%s", ErrBadRequest, e.msg, where)
	}
	return fmt.Sprintf("%v: %s: %s%s", ErrBadRequest, e.field, e.msg, where)
}

func (e *fieldError) Is(target error) bool { return target == ErrBadRequest }

// strict decodes one JSON value and nothing else: unknown and repeated fields are errors that name them.
func strict(data []byte, out any) error {
	if err := unique(data); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		return located(data, d.InputOffset(), err)
	}
	return nil
}

// unique walks the tokens of one JSON value: encoding/json would let the last of several fields of the same name win in silence.
func unique(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := uniqueValue(d, data, "", 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		line, col := place(data, d.InputOffset())
		return &fieldError{msg: "there is something after the JSON value", line: line, col: col}
	}
	return nil
}

// maxDepth is far more than any request needs.
const maxDepth = 64

func uniqueValue(d *json.Decoder, data []byte, path string, depth int) error {
	if depth > maxDepth {
		return &fieldError{msg: "nested too deeply"}
	}
	tok, err := d.Token()
	if err != nil {
		return located(data, d.InputOffset(), err)
	}
	switch tok {
	case json.Delim('{'):
		seen := map[string]bool{}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return located(data, d.InputOffset(), err)
			}
			name, _ := key.(string)
			field := strings.TrimPrefix(path+"."+name, ".")
			// encoding/json matches names in any case.
			if folded := strings.ToLower(name); seen[folded] {
				line, col := place(data, d.InputOffset())
				return &fieldError{field, "is there twice", line, col}
			} else {
				seen[folded] = true
			}
			if err := uniqueValue(d, data, field, depth+1); err != nil {
				return err
			}
		}
	case json.Delim('['):
		for i := 0; d.More(); i++ {
			if err := uniqueValue(d, data, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	if _, err := d.Token(); err != nil { // the closing one
		return located(data, d.InputOffset(), err)
	}
	return nil
}

// located turns an error of encoding/json into one with a field and a place.
func located(data []byte, offset int64, err error) error {
	out := &fieldError{msg: err.Error()}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset, out.msg = syntax.Offset, "not JSON: "+syntax.Error()
	case errors.As(err, &kind):
		offset = kind.Offset
		out.field, out.msg = kind.Field, fmt.Sprintf("expected %s, found %s", jsonKind(kind.Type.String()), kind.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		out.msg = "not JSON: it ends in the middle"
		if len(bytes.TrimSpace(data)) == 0 {
			out.msg = "empty: expected a JSON object"
		}
	default:
		if name, ok := strings.CutPrefix(err.Error(), `json: unknown field "`); ok {
			out.field, out.msg = strings.TrimSuffix(name, `"`), "unknown field"
		}
	}
	out.line, out.col = place(data, offset)
	return out
}

// jsonKind says what a Go type is called in JSON.
func jsonKind(goType string) string {
	switch {
	case strings.Contains(goType, "int"), strings.Contains(goType, "float"), strings.HasSuffix(goType, "Size"), strings.HasSuffix(goType, "Duration"):
		return "a number"
	case goType == "string":
		return "a string"
	case goType == "bool":
		return "true or false"
	case strings.HasPrefix(goType, "[]"):
		return "an array"
	}
	return "an object"
}

func place(data []byte, offset int64) (line, col int) {
	offset = min(max(offset, 0), int64(len(data)))
	before := data[:offset]
	return 1 + bytes.Count(before, []byte("\n")), 1 + len(before) - (1 + bytes.LastIndexByte(before, '\n'))
}

// readBody reads a request's body up to the server's limit.
func readBody(r *http.Request) ([]byte, error) {
	data, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, apiErrorf(ErrTooLarge, "over %d bytes", large.Limit)
	}
	if err != nil {
		return nil, apiErrorf(ErrBadRequest, "the body was cut short: %v", err)
	}
	return data, nil
}

// media returns the body's type. None is JSON.
func media(r *http.Request) string {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil && r.Header.Get("Content-Type") == "" {
		return "application/json"
	}
	return t
}

// bodyJSON reads a JSON body into out. Where a body is optional, none leaves out as it is.
func bodyJSON(r *http.Request, out any, optional bool) error {
	data, err := readBody(r)
	if err != nil {
		return err
	}
	if optional && len(data) == 0 {
		return nil
	}
	if t := media(r); t != "application/json" {
		return apiErrorf(ErrBadRequest, "Content-Type %q: expected application/json", t)
	}
	return strict(data, out)
}

// bodyPeer reads what another node sends. One of a later version may say more than is known here.
func bodyPeer(r *http.Request, out any) error {
	data, err := readBody(r)
	if err != nil {
		return err
	}
	if t := media(r); t != "application/json" {
		return apiErrorf(ErrBadRequest, "Content-Type %q: expected application/json", t)
	}
	return tolerant(data, out)
}

// tolerant is strict that leaves unknown fields unread.
func tolerant(data []byte, out any) error {
	if err := unique(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, out); err != nil {
		return located(data, 0, err)
	}
	return nil
}

// query returns the request's parameters, after checking that each is one that the route knows and is there once.
func query(r *http.Request, known []string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, apiErrorf(ErrBadRequest, "query: %v", err)
	}
	for name, values := range q {
		switch {
		case !slices.Contains(known, name):
			return nil, &fieldError{field: name, msg: "unknown query parameter" + expected(known)}
		case len(values) > 1:
			return nil, &fieldError{field: name, msg: "is there twice"}
		}
	}
	return q, nil
}

func expected(known []string) string {
	if len(known) == 0 {
		return ": expected none"
	}
	return ": expected " + strings.Join(known, ", ")
}
