package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"reflect"

	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// call is what a request asks for.
type call struct {
	// Method as the API names it: CreateVM_Task.
	method string
	// The object it is asked of.
	this types.ManagedObjectReference
	// Where in the request the start tag of its name is.
	tag [2]int64
}

// redirect makes a request one that is asked of an object of another type, of the same value.
func (c call) redirect(body []byte, kind string) []byte {
	tag := bytes.Replace(body[c.tag[0]:c.tag[1]], []byte(c.this.Type), []byte(kind), 1)
	return bytes.Join([][]byte{body[:c.tag[0]], tag, body[c.tag[1]:]}, nil)
}

// parseCall reads no further into a request than the name of the object it is asked of.
func parseCall(body []byte) (call, error) {
	decoder := xml.NewDecoder(bytes.NewReader(body))
	var c call
	depth, inBody, inThis := 0, false, false
	for {
		before := decoder.InputOffset()
		token, err := decoder.Token()
		if err == io.EOF {
			return c, fmt.Errorf("no call in the envelope's body")
		}
		if err != nil {
			return c, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			depth++
			switch {
			case depth == 2:
				inBody = t.Name.Local == "Body"
			case depth == 3 && inBody:
				c.method = t.Name.Local
			case depth == 4 && c.method != "" && t.Name.Local == "_this":
				inThis = true
				c.tag = [2]int64{before, decoder.InputOffset()}
				for _, a := range t.Attr {
					if a.Name.Local == "type" && a.Name.Space == "" {
						c.this.Type = a.Value
					}
				}
			}
		case xml.CharData:
			if inThis {
				c.this.Value += string(t)
			}
		case xml.EndElement:
			depth--
			if inThis || depth == 2 && c.method != "" {
				return c, nil
			}
		}
	}
}

// envelope is a SOAP answer's outside, with the prefixes that vSphere uses.
type envelope struct {
	XMLName xml.Name    `xml:"soapenv:Envelope"`
	Enc     string      `xml:"xmlns:soapenc,attr"`
	Env     string      `xml:"xmlns:soapenv,attr"`
	XSD     string      `xml:"xmlns:xsd,attr"`
	XSI     string      `xml:"xmlns:xsi,attr"`
	Body    interface{} `xml:"soapenv:Body"`
}

// faultBody is a fault in an envelope's body.
type faultBody struct {
	Fault struct {
		XMLName xml.Name `xml:"soapenv:Fault"`
		Code    string   `xml:"faultcode"`
		String  string   `xml:"faultstring"`
		Detail  struct {
			Fault faultDetail
		} `xml:"detail"`
	}
}

// faultDetail becomes an element of the fault's name.
type faultDetail struct {
	fault types.BaseMethodFault
}

func (d faultDetail) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	kind := reflect.TypeOf(d.fault).Elem().Name()
	start.Name.Local = kind + "Fault"
	start.Attr = append(start.Attr,
		xml.Attr{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		xml.Attr{Name: xml.Name{Local: "xsi:type"}, Value: kind})
	return e.EncodeElement(d.fault, start)
}

// writeFault answers with a fault.
func writeFault(w http.ResponseWriter, message string, fault types.BaseMethodFault) {
	var body faultBody
	body.Fault.Code = "ServerFaultCode"
	body.Fault.String = message
	body.Fault.Detail.Fault.fault = fault
	var out bytes.Buffer
	out.WriteString(xml.Header)
	err := xml.NewEncoder(&out).Encode(&envelope{
		Enc:  "http://schemas.xmlsoap.org/soap/encoding/",
		Env:  "http://schemas.xmlsoap.org/soap/envelope/",
		XSD:  "http://www.w3.org/2001/XMLSchema",
		XSI:  "http://www.w3.org/2001/XMLSchema-instance",
		Body: &body,
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = w.Write(out.Bytes())
}

// writeAnswer answers with what is XML already.
func writeAnswer(w http.ResponseWriter, method, content string) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	fmt.Fprintf(w, `%s<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>`+
		`<%[2]sResponse xmlns="urn:vim25">%[3]s</%[2]sResponse></soapenv:Body></soapenv:Envelope>`,
		xml.Header, method, content)
}

// faultNamed makes an empty fault of a type's name: NotEnoughLicenses. Where it has to name an object, it
// names this one.
func faultNamed(name string, of types.ManagedObjectReference) (types.BaseMethodFault, error) {
	kind, ok := types.TypeFunc()(name)
	if !ok {
		return nil, fmt.Errorf("the API has no type %q", name)
	}
	value := reflect.New(kind)
	fault, ok := value.Interface().(types.BaseMethodFault)
	if !ok {
		return nil, fmt.Errorf("%q is no fault", name)
	}
	nameObjects(value.Elem(), of)
	if busy, ok := fault.(*types.TaskInProgress); ok {
		busy.Task = lastTask(of)
	}
	return fault, nil
}

func nameObjects(value reflect.Value, of types.ManagedObjectReference) {
	for i := 0; i < value.NumField(); i++ {
		field := value.Field(i)
		if field.Type() == reflect.TypeOf(of) {
			field.Set(reflect.ValueOf(of))
		} else if field.Kind() == reflect.Struct && value.Type().Field(i).Anonymous {
			nameObjects(field, of)
		}
	}
}

// faultMessage is what a client shows of a fault of the simulator's own.
func faultMessage(fault types.BaseMethodFault) string {
	switch f := fault.(type) {
	case *types.GenericVmConfigFault:
		return f.Reason
	case *types.SystemError:
		return f.Reason
	}
	return reflect.TypeOf(fault).Elem().Name()
}

// answer is a response that is not sent yet.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newAnswer() *answer { return &answer{header: make(http.Header), status: http.StatusOK} }

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) { a.status = status }

func (a *answer) Write(data []byte) (int, error) { return a.body.Write(data) }

// send sends it.
func (a *answer) send(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	if a.body.Len() > 0 && w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes())
}
