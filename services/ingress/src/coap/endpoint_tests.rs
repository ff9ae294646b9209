//! Does the endpoint do as the RFCs and the device API say?
